from __future__ import annotations

import json
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from rlrt.audit_verifier import HANGING, KINDS, audit, fraction_probes, number_probes, probes_of, unprobed
from rlrt.tasks.base import Task
from rlrt.types import Grade, Prompt
from tests.helpers import settings


def rows_of(text):
    """The table's numbers by kind of probe."""
    found = {}
    for line in text.splitlines()[2:]:
        *kind, asked, fine, accepted, rejected, errors = line.split()
        if not errors.isdigit():
            break
        found[" ".join(kind)] = tuple(map(int, (asked, fine, accepted, rejected, errors)))
    return found


@pytest.fixture
def problems(tmp_path):
    answers = ["42", "-7", "\\frac{3}{4}", "0", "145.0", "1.50", "-1/2"]
    lines = [json.dumps({"prompt": f"{i}?", "answer": a}) for i, a in enumerate(answers)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path / "a.jsonl"


@pytest.mark.parametrize(("verifier", "rejected"), [("math", 0), ("exact", 18)])
def test_what_the_shipped_verifiers_make_of_it(problems, verifier, rejected):
    data = settings("data=file", f"data.path={problems}", f"data.verifier={verifier}", "data.heldout_share=0.1").data
    data.prepare()
    try:
        text = audit(data, [*data.train, *data.heldout])
    finally:
        data.close()
    rows = rows_of(text)
    assert list(rows) == list(KINDS)
    assert rows["expected answer"] == (7, 7, 0, 0, 0)
    assert rows["unfinished sum"][0] == 7 * 6 + 2
    for kind in set(KINDS) - {"equivalent form", "without a box", "dress"}:
        assert rows[kind][2:] == (0, 0, 0), kind
    assert rows["without a box"][3] == (14 if rejected else 0)
    assert rows["dress"] == (42, 42 - (35 if rejected else 0), 0, 35 if rejected else 0, 0)
    assert text.count("not probed") == 1
    assert "not probed for letters in another order: no answer is a word" in text
    assert rows["equivalent form"][3] == rejected
    assert ("taken for wrong: " in text) == (rejected > 0)
    assert "an expression that never ends: " in text
    assert "taken for right after" not in text


def test_a_verifier_that_takes_everything_or_fails_is_shown_up():
    class Gullible(Task):
        def grade(self, prompt, text):
            return Grade(True, 1.0)

    class Broken(Task):
        def grade(self, prompt, text):
            return Grade(False, 0.0, error=True)

    prompt = Prompt("a", "x", "5", None, "5")
    rows = rows_of(audit(Gullible(), [prompt]))
    assert rows["near miss"] == (4, 0, 4, 0, 0)
    assert rows["refusal"] == (1, 0, 1, 0, 0)
    assert rows_of(audit(Broken(), [prompt]))["expected answer"] == (1, 0, 0, 0, 1)


def value_of(text):
    """A formula's value, exact."""
    plain = re.sub(r"\\d?frac\{(-?\d+)\}\{(\d+)\}", r"(\1/\2)", text).replace("\\times", "*")
    return eval(re.sub(r"\d+(?:\.\d+)?", r"Fraction('\g<0>')", plain), {"Fraction": Fraction})


NUMBERS = [
    "42",
    "-7",
    "0",
    "7",
    "145.0",
    "1.50",
    "0.05",
    "-2.5",
    r"\frac{3}{4}",
    r"-\frac{3}{4}",
    "5/7",
    r"\frac{4}{2}",
]


@pytest.mark.parametrize("answer", NUMBERS)
def test_probes_are_what_they_say(answer):
    """Equal forms and finished sums are equal, near misses are not; an unfinished sum is equal or ends with the answer."""
    expected, probes = value_of(answer), [*number_probes(answer), *fraction_probes(answer)]
    for probe in probes:
        text = re.sub(r"^(Therefore the answer is|There are)|[$.]+$|\$", "", probe.text).strip()
        if probe.kind in ("equivalent form", "near miss"):
            assert (value_of(text.removeprefix("\\boxed{")[:-1]) == expected) == probe.right, probe
        elif probe.kind == "without a box":
            assert {value_of(side) for side in text.split(" = ")} == {expected}, probe
        elif probe.kind == "unfinished sum":
            total = text.partition("=")[0].strip()
            assert value_of(total) == expected or abs(value_of(total.split()[-1])) == abs(expected), probe
        assert probe.right == (probe.kind in ("equivalent form", "without a box"))
    assert sum(p.kind == "unfinished sum" for p in probes) == (8 if answer == "42" else 6)


def test_what_is_no_number_has_no_number_probes():
    assert fraction_probes("3") == number_probes("x") == number_probes("1" * 20) == fraction_probes("1/0") == []
    assert number_probes("9 (apples)") == fraction_probes("x/2") == []
    assert number_probes("1,234") == number_probes("1234")
    assert {p.kind for p in probes_of(Prompt("a", "x", None, "s"))} == {"expected answer", "junk", "refusal"}


def test_what_could_not_be_probed_is_said():
    units = [Prompt(str(i), "x", None, None, f"{i} (apples)") for i in range(9, 12)]
    assert unprobed(units) == [
        "not probed for equivalent forms, near misses and unfinished sums: 3 of 3 answers are neither a number nor a fraction "
        "(for example '9 (apples)')",
        "not probed for letters in another order: no answer is a word",
        "not probed with many boxes, nor with many answers in one box: no answer is a whole number",
    ]
    line, _ = unprobed([*units, Prompt("a", "x", None, None, "5")])
    assert "3 of 4 answers" in line
    assert unprobed([Prompt("a", "x", None, None, "5"), Prompt("b", "x", None, None, "east")])[1:] == []
    (line,) = [line for line in unprobed([Prompt("a", "x", None, None, "x^2")]) if "dress" in line]
    assert line.endswith("1 of 1 answers are neither a number, a fraction, words nor a letter (for example 'x^2')")
    assert [line.partition(":")[2] for line in unprobed([Prompt("a", "x", None)])] == [
        " no answer is a word",
        " 1 of 1 problems have no final answer as text",
        " no answer is a whole number",
        " 1 of 1 problems have neither answer nor solution as text",
    ]


def test_a_verifier_that_finishes_sums_is_shown_up():
    """math-verify itself, given whole responses."""

    class Finishing(Task):
        def grade(self, prompt, text):
            correct = text != HANGING and bare_math_verify(prompt.final, text)
            return Grade(correct, float(correct))

    text = audit(Finishing(), [Prompt("a", "x", "35", None, "35")])
    assert rows_of(text)["unfinished sum"][2] > 4
    assert "taken for right: '32 + 3' for '35'" in text


def test_a_verifier_that_reads_words_as_products_or_stumbles_over_dress_is_shown_up():
    class Bare(Task):
        def grade(self, prompt, text):
            correct = text != HANGING and bare_math_verify(prompt.final, text)
            return Grade(correct, float(correct))

    rows = rows_of(audit(Bare(), [Prompt("a", "x", "listen", None, "listen"), Prompt("b", "x", "C", None, "C")]))
    assert rows["letters in another order"] == (2, 0, 2, 0, 0)
    assert rows["dress"][3] > 0


@pytest.mark.parametrize(
    ("answer", "dress", "near", "letters"),
    [
        ("listen", 7, 0, 2),
        ("C", 7, 2, 0),
        ("level", 7, 0, 1),
        ("\\$1.50", 1, 1, 0),
        ("25\\%", 1, 1, 0),
        ("0.5\\%", 0, 0, 0),
        ("1234", 8, 4, 0),
        ("\\frac{1}{2}", 6, 1, 0),
        ("7 pm", 0, 0, 0),
        ("x^2", 0, 0, 0),
        ("5 \\text{ cm}", 1, 1, 0),
    ],
)
def test_probes_for_dress_and_letters(answer, dress, near, letters):
    probes = probes_of(Prompt("a", "x", answer, None, answer))
    counts = [sum(p.kind == kind for p in probes) for kind in ("dress", "near miss", "letters in another order")]
    assert counts == [dress, near, letters]
    assert {p.right for p in probes if p.kind == "dress"} <= {True}
    assert not any(p.right for p in probes if p.kind in ("near miss", "letters in another order"))


def bare_math_verify(expected, text):
    from math_verify import parse, verify

    return verify(parse(f"${expected}$", parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None)


def test_the_command_on_the_embedded_task(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rlrt.audit_verifier", "data=countdown", "--problems", "5"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout)["expected answer"] == (5, 5, 0, 0, 0)
    assert rows_of(done.stdout)["junk"] == (25, 25, 0, 0, 0)
