"""math-verify in processes of its own: equality, time limits, crashes; errors apart from wrong answers."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from rlrt.verifiers import math
from rlrt.verifiers.math import MathVerify, equal, in_math


@pytest.fixture(scope="module")
def verifier():
    made = MathVerify(timeout_s=10.0, workers=1)
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
    grades = verifier.grade(pairs)
    assert [g.correct for g in grades] == [True] * 5 + [False] * 5
    assert not any(g.error for g in grades)
    assert [g.reward for g in grades] == [float(g.correct) for g in grades]


def test_an_expected_answer_that_cannot_be_read_is_an_error_not_a_wrong_answer(verifier):
    (grade,) = verifier.grade([("", "\\boxed{42}")])
    assert (grade.correct, grade.error) == (False, True)


def slow_or_not(expected, response):
    if response == "hang":
        time.sleep(600)
    if response == "crash":
        import os

        os._exit(3)
    return expected == response


def test_late_and_crashed_answers_are_errors_and_disturb_no_other(monkeypatch):
    before = set(multiprocessing.active_children())
    monkeypatch.setattr(math, "equal", slow_or_not)
    verifier = MathVerify(timeout_s=1.0, workers=2)
    try:
        begin = time.monotonic()
        grades = verifier.grade([("1", "1"), ("1", "hang"), ("1", "crash"), *[("2", "2")] * 6, ("2", "3")])
        assert [g.correct for g in grades] == [True, False, False, *[True] * 6, False]
        assert [g.error for g in grades] == [False, True, True, *[False] * 7]
        assert time.monotonic() - begin < 60  # not the 600 seconds of the one that hangs
        assert verifier.grade([("1", "1")])[0].correct  # and it goes on
    finally:
        verifier.close()
    assert set(multiprocessing.active_children()) <= before


def test_what_math_verify_gets_wrong_is_known():
    """If this changes, the docs may too."""
    assert equal("1/2004!", "\\boxed{1/2006!}")


@pytest.mark.parametrize(("expected", "math_text"), [("42", "$42$"), ("$42$", "$42$"), ("\\boxed{42}", "\\boxed{42}")])
def test_expected_answers_become_mathematics(expected, math_text):
    assert in_math(expected) == math_text
