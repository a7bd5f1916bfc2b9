from __future__ import annotations

import re
import sys

import pytest

from rlrt import evaluate
from rlrt.errors import UserError
from rlrt.evaluation.late import steps_of, when_solved
from rlrt.execution.execute import execute
from tests.helpers import settings

SMALL = ("train.steps=3", "train.prompts_per_step=4", "train.eval_every=0", "eval.prompts=12", "train.save_every=1",
         "train.keep_last=9", "tracking=none", "train.lr=1e-3")  # fmt: skip


def row(suite, problem, correct):
    return {"suite": suite, "prompt_id": problem, "correct": correct}


def test_problems_by_when_they_were_first_solved():
    """Of six problems three are early, two late, one never, and one was lost; a seventh lacks a step and does not count."""
    correct = {"a": (2, 0, 0), "b": (0, 1, 3), "c": (0, 0, 1), "d": (0, 0, 0), "e": (0, 0, 8), "f": (1, 1, 1)}
    steps = (0, 100, 200)
    rows = {s: [row("x", name, those[i]) for name, those in correct.items()] for i, s in enumerate(steps)}
    rows[0].append(row("x", "g", 1))
    found = when_solved(rows, after=100)["x"]
    assert found["problems"] == 6
    assert [round(found[name][0] * 6, 9) for name in ("early", "late", "never", "lost")] == [3, 2, 1, 1]
    assert found["late"][1] < found["late"][0] < found["late"][2]
    assert round(when_solved(rows, after=99)["x"]["late"][0] * 6, 9) == 3
    two = when_solved(rows | {0: [*rows[0], row("y", "a", 0)]}, after=100)
    assert two == {"x": found}


def test_a_runs_checkpoints(tmp_cwd, capsys, monkeypatch):
    execute(settings(*SMALL), tmp_cwd / "run", lambda line: None, lambda: False, progress=False)
    assert steps_of(tmp_cwd / "run", 1) == [0, 1, 2, 3]
    monkeypatch.setattr(sys, "argv", ["evaluate", "run", "--first-solved-after", "1", "eval.samples_per_prompt=2"])
    with pytest.raises(SystemExit) as end:
        evaluate.main()
    assert not end.value.code
    printed = capsys.readouterr().out
    assert "first solved, by 2 samples at the steps 0, 1, 2, 3" in printed
    line = next(line for line in printed.splitlines() if line.startswith("heldout") and "(" in line)
    shares = [float(s) for s in re.findall(r"(\d\.\d+) \(", line)]
    assert sum(shares[:3]) == pytest.approx(1.0, abs=0.002)
    assert shares[0] > 0
    with pytest.raises(UserError, match="needs a checkpoint of a later step, found 1, 2, 3"):
        steps_of(tmp_cwd / "run", 3)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["model=tiny", "--first-solved-after", "3"], "--first-solved-after 3: only a run has steps"),
        (["run", "--first-solved-after", "3", "--step", "1"], "--step and --first-solved-after: give one of them"),
    ],
)
def test_what_cannot_be_asked(typed, says, tmp_cwd, capsys, monkeypatch):
    (tmp_cwd / "run").mkdir()
    monkeypatch.setattr(sys, "argv", ["evaluate", *typed])
    with pytest.raises(SystemExit) as end:
        evaluate.main()
    assert end.value.code == 2
    assert says in capsys.readouterr().err
