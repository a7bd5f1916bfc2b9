"""math-verify in processes of its own: equality, time limits, crashes; errors apart from wrong answers."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from rlrt.verifiers.math import answer_part, at_sight, equal, math_verify, whole_numbers
from rlrt.verifiers.verifier import InProcesses


@pytest.fixture(scope="module")
def verifier():
    made = math_verify(10.0, 1)
    yield made
    made.close()


def test_right_wrong_and_unreadable(verifier):
    pairs = [
        ("42", "so it is \\boxed{42}"),
        ("\\frac{1}{2}", "\\boxed{0.5}"),
        ("x^2+1", "\\boxed{1+x^2}"),
        ("(1,2)", "\\boxed{(1, 2)}"),
        ("42", "the answer is 42"),
        ("42", "\\boxed{43}"),
        ("42", "42 or so, \\boxed{41}"),
        ("42", ""),
        ("42", "I cannot answer this."),
        ("42", "<think>\\boxed{42}"),
    ]
    grades = verifier.start(pairs)()
    assert [g.correct for g in grades] == [True] * 5 + [False] * 5
    assert not any(g.error for g in grades)
    assert [g.reward for g in grades] == [float(g.correct) for g in grades]


def test_an_expected_answer_that_cannot_be_read_is_an_error_not_a_wrong_answer(verifier):
    (grade,) = verifier.start([("", "\\boxed{42}")])()
    assert (grade.correct, grade.error) == (False, True)


UNFINISHED = [
    *(
        ("11", text)
        for text in (
            "4 + 7",
            "4 + 7 =",
            "4 + 7 = nothing",
            "4 + 7 = \\box{3)",
            "7 + 4 = \\text{3}",
            "4 + 7 = \\box{12}",
        )
    ),
    ("35", "There are 7 * 5 = "),
    ("7", "4 + 7"),
    ("-7", "4 - 7"),
    ("-3", "4 - 7"),
    ("11", "22/2"),
    ("2", "4 1/2"),
    ("1", "1 1/2"),
    ("\\frac{1}{2}", "1 1/2"),
    ("\\frac{1}{2}", "1 + \\frac{1}{2}"),
    ("0.5", "1/4 + 1/4"),
    ("11", "11 apples"),
    ("11", "\\sqrt{121}"),
    ("(4,7)", "4, 7"),
    ("x^2", "so x^2"),
]
FINISHED = [
    ("11", "4 + 7 = 11"),
    ("11", "#### 11"),
    ("11", "**Answer: 11.0**"),
    ("-7", "4 - 11 = -7."),
    ("1234", "It is $1,234$."),
    ("1234", "It is 1{,}234"),
    ("0.5", "It is 1/2."),
    ("\\frac{3}{2}", "1 1/2"),
    ("1 1/2", "1 1/2"),
    ("1 1/2", "\\boxed{1\\frac{1}{2}}"),
    ("1 1/2", "\\boxed{1 1/2}"),
    ("1.5", "= \\dfrac{3}{2}"),
    ("6.02e23", "about 6.02 \\times 10^{23}"),
    ("6.02 \\times 10^{23}", "6.02e23"),
    ("6.02e23", "\\boxed{6.02e23}"),
    ("145.0", "145"),
    ("1e5", "\\boxed{1e5 \\text{ m}}"),
    ("6e13", "\\boxed{6e13 \\text{ years}}"),
    ("1 1/2", "\\boxed{1 1/2 \\text{ cups}}"),
    ("1e5", "\\boxed{$1e5$}"),
    ("1e5", "\\boxed{x = 1e5}"),
    ("$1e5$", "\\boxed{1e5}"),
    ("\\boxed{1 1/2}", "\\boxed{1 1/2}"),
    ("listen", "\\boxed{listen}"),
]
OTHER = [
    ("12", "4 + 7 = 11"),
    ("11", "4 + 7 = 12"),
    ("1", "\\boxed{1 1/2}"),
    ("1.5", "11/2"),
    ("6.02e23", "6.02e22"),
    ("145.0", "1450"),
]


def test_without_a_box_only_a_plain_number_counts(verifier):
    """Right, wrong and errors are counted apart; no answer is wrong, not an error, and needs no process."""
    grades = verifier.start([*FINISHED, *UNFINISHED, *OTHER])()
    right = len(FINISHED)
    assert [pair for pair, grade in zip(FINISHED, grades[:right], strict=True) if not grade.correct] == []
    wrong = zip([*UNFINISHED, *OTHER], grades[right:], strict=True)
    assert [pair for pair, grade in wrong if grade.correct] == []
    assert not any(grade.error for grade in grades)
    assert sum(g.correct for g in grades) == right


def test_no_answer_is_seen_to_be_wrong_without_a_process():
    verifier = math_verify(10.0, 1)
    grades = verifier.start(
        [(expected, text) for expected in ("11", "", "x") for text in ("4 + 7", "", "\\boxed{}", "\\boxed{11")]
    )()
    assert {(g.correct, g.error) for g in grades} == {(False, False)}
    assert verifier._pool is None
    verifier.close()
    assert at_sight("11", "") is False
    assert at_sight("11", "\\boxed{11}") is True
    assert at_sight("11", "\\boxed{x}") is None


def slow_or_not(expected, response):
    if response == "hang":
        time.sleep(600)
    if response == "crash":
        import os

        os._exit(3)
    return expected == response


def test_late_and_crashed_answers_are_errors_and_disturb_no_other():
    before = set(multiprocessing.active_children())
    verifier = InProcesses(slow_or_not, 1.0, 2, str, ("1", "1"))
    try:
        begin = time.monotonic()
        grades = verifier.start([("1", "1"), ("1", "hang"), ("1", "crash"), *[("2", "2")] * 6, ("2", "3")])()
        assert [g.correct for g in grades] == [True, False, False, *[True] * 6, False]
        assert [g.error for g in grades] == [False, True, True, *[False] * 7]
        assert time.monotonic() - begin < 60  # not the 600 seconds of the one that hangs
        assert verifier.start([("1", "1")])()[0].correct  # and it goes on
    finally:
        verifier.close()
    assert set(multiprocessing.active_children()) <= before


def test_what_math_verify_gets_wrong_is_right_here():
    """If the first two lines fail, the reason for the check by numbers in ``symbolic.py`` is gone."""
    from math_verify import parse, verify

    assert verify(
        parse("$1/2004!$", parsing_timeout=None), parse("$1/2006!$", parsing_timeout=None), timeout_seconds=None
    )
    assert not verify(
        parse("$\\sqrt{1/n}$", parsing_timeout=None),
        parse("$\\frac{1}{\\sqrt{n}}$", parsing_timeout=None),
        timeout_seconds=None,
    )
    assert not equal("1/2004!", "\\boxed{1/2006!}")
    assert equal("1/2004!", "\\boxed{\\frac{1}{2004!}}")
    assert equal("\\sqrt{1/n}", "\\boxed{\\frac{1}{\\sqrt{n}}}")
    assert not equal("0.0000001", "\\boxed{0.0000002}")  # math-verify rounds to six places


def test_a_box_is_all_that_is_judged_and_equal_questions_are_asked_once(tmp_path):
    assert answer_part("so 3, or \\boxed{4} no \\boxed{5} at last") == "\\boxed{5}"
    assert answer_part("<think>\\boxed{4}") == ""
    verifier = InProcesses(noted, 10.0, 1, answer_part, None)
    file = tmp_path / "asked"
    try:
        pairs = [(str(file), f"thought {i} \\boxed{{{i % 2}}}") for i in range(8)]
        grades = verifier.start(pairs)()
        again = verifier.start(pairs)()
    finally:
        verifier.close()
    assert [g.correct for g in grades] == [False, True] * 4
    assert again == grades
    assert sorted(file.read_text().split()) == ["\\boxed{0}", "\\boxed{1}"]


def noted(file, response):
    with open(file, "a") as out:
        out.write(response + "\n")
    return response == "\\boxed{1}"


def test_whole_numbers_are_judged_at_sight_as_math_verify_judges_them():
    numbers = ["0", "7", "-7", "12", "120", "1000000", "-1999", "999999999999999"]
    for expected in numbers:
        for given in numbers:
            response = f"\\boxed{{{given}}}"
            assert whole_numbers(expected, response) is equal(expected, response)
    for expected, given in (("7", "7.0"), ("07", "7"), ("7", "x"), ("1/2", "1"), ("7", "1,000"), ("-0", "0")):
        assert whole_numbers(expected, f"\\boxed{{{given}}}") is None
    assert whole_numbers("7", "the answer is 7") is None


def fails_at_sight(expected, response):
    raise RecursionError("too deep")


def test_what_fails_at_sight_is_left_to_a_process():
    verifier = InProcesses(slow_or_not, 10.0, 1, str, None, fails_at_sight)
    try:
        assert [g.correct for g in verifier.start([("1", "1"), ("1", "2")])()] == [True, False]
    finally:
        verifier.close()


def given_back(expected, response):
    return expected


def test_what_is_no_verdict_is_an_error_and_is_told_once(caplog):
    """A text and a tuple are true in Python: an answer that was judged wrong would count as right."""
    verifier = InProcesses(given_back, 10.0, 1, str)
    verdicts = [True, 0, "False", (False, "why"), None, 0.5]
    try:
        grades = verifier.start([(value, "x") for value in verdicts])()
    finally:
        verifier.close()
    assert [(g.correct, g.error) for g in grades] == [(True, False), (False, False)] + [(False, True)] * 4
    assert [r.getMessage() for r in caplog.records] == [
        "data.verifier: expected True or False, got 'False'; such an answer is counted as an error"
    ]
