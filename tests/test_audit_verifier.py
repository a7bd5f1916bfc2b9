from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rlrt.audit_verifier import audit, fraction_probes, number_probes, probes_of
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
    answers = ["42", "-7", "\\frac{3}{4}", "0"]
    lines = [json.dumps({"prompt": f"{i}?", "answer": a}) for i, a in enumerate(answers)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path / "a.jsonl"


@pytest.mark.parametrize(("verifier", "rejected"), [("math", 0), ("exact", 11)])
def test_what_the_shipped_verifiers_make_of_it(problems, verifier, rejected):
    data = settings("data=file", f"data.path={problems}", f"data.verifier={verifier}", "data.heldout_share=0.1").data
    data.prepare()
    try:
        text = audit(data, [*data.train, *data.heldout])
    finally:
        data.close()
    rows = rows_of(text)
    assert rows["expected answer"] == (4, 4, 0, 0, 0)
    for kind in ("near miss", "junk", "refusal", "thought without an end", "many boxes, the last one wrong"):
        assert rows[kind][2:] == (0, 0, 0), kind
    assert rows["equivalent form"][3] == rejected
    assert ("taken for wrong: " in text) == (rejected > 0)
    assert "an expression that never ends: " in text
    assert "taken for right after" not in text


def test_a_verifier_that_takes_everything_or_fails_is_shown_up():
    class Gullible:
        def grade(self, prompt, text):
            return Grade(True, 1.0)

    class Broken:
        def grade(self, prompt, text):
            return Grade(False, 0.0, error=True)

    prompt = Prompt("a", "x", "5", None, "5")
    rows = rows_of(audit(Gullible(), [prompt]))
    assert rows["near miss"] == (4, 0, 4, 0, 0)
    assert rows["refusal"] == (1, 0, 1, 0, 0)
    assert rows_of(audit(Broken(), [prompt]))["expected answer"] == (1, 0, 0, 0, 1)


def test_probes_are_what_they_say():
    """Numbers in Python's own arithmetic: every equivalent form is equal, every near miss is not."""
    for answer in ("42", "-7", "0"):
        for probe in number_probes(answer):
            inside = probe.text.rsplit("\\boxed{", 1)[-1].rstrip("}") if "\\boxed" in probe.text else answer
            if probe.kind in ("equivalent form", "near miss") and "frac" not in inside:
                assert (eval(inside, {}) == int(answer)) == probe.right
    assert [p.right for p in fraction_probes("\\frac{3}{4}")] == [True, True, False]
    assert fraction_probes("3") == number_probes("x") == []
    assert {p.kind for p in probes_of(Prompt("a", "x", None, "s"))} == {"expected answer", "junk", "refusal"}


def test_the_command_on_the_embedded_task(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rlrt.audit_verifier", "data=countdown", "--problems", "5"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout)["expected answer"] == (5, 5, 0, 0, 0)
    assert rows_of(done.stdout)["junk"] == (25, 25, 0, 0, 0)
