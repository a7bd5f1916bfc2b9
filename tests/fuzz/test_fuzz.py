"""Inputs of the fuzzer, and the judge itself: what it must find is found."""

from __future__ import annotations

import itertools

import pytest

from tests.fuzz import overrides
from tests.fuzz.judge import Case, faults, judged, run_real
from tests.fuzz.kinds import KINDS, cases

SEED = 20261127
INPUTS, BATCHES, REAL = 75, 10, 4
CASE = Case("overrides", ("seed=-1",), ("seed",))
GOOD = "error: seed: expected a number of at least 0, got -1.\n"


@pytest.mark.fuzz
@pytest.mark.parametrize("batch", range(BATCHES))
def test_inputs(batch):
    """In forks: an input costs what it does, not its imports."""
    mine = itertools.islice(cases(SEED, INPUTS), batch, None, BATCHES)
    wrong = [f"{case}: {'; '.join(found)}" for case in mine if (found := judged(case))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.fuzz
@pytest.mark.parametrize("batch", range(4))
def test_inputs_in_interpreters_of_their_own(batch):
    mine = itertools.islice(cases(SEED + 1, REAL), batch, None, 4)
    wrong = [f"{case}: {'; '.join(found)}" for case in mine if (found := judged(case, run_real))]
    assert not wrong, "\n".join(wrong)


def test_every_key_comes_once_before_one_comes_twice():
    keys = overrides.keys()
    first = list(itertools.islice(overrides.cases(SEED), len(keys)))
    assert len(keys) > 140
    for _, key, _ in keys:
        assert any(name.startswith(key[:60]) for case in first for name in case.names), key
    assert {"hydra.launcher.max_queued", "hydra.sweeper.zip", "model.path", "seed"} <= {key for _, key, _ in keys}


def test_the_same_seed_gives_the_same_inputs():
    assert [str(c) for c in cases(1, 40)] == [str(c) for c in cases(1, 40)]
    assert [str(c) for c in cases(1, 40)] != [str(c) for c in cases(2, 40)]
    assert {case.kind for case in cases(1, 4 * len(KINDS))} == set(KINDS)


@pytest.mark.parametrize(
    ("code", "out", "err", "left", "says"),
    [
        (2, "", GOOD, [], None),
        (0, "fine", "", ["finished"], None),
        (1, "", GOOD, [], "exit code 1"),
        (2, "", GOOD, ["finished"], "left as finished"),
        (2, "", GOOD + GOOD, [], "expected one sentence"),
        (2, "", "error: something\n", [], "no key and no file is named"),
        (2, "", GOOD + "a\nb\nc\n", [], "a refusal of 4 lines"),
        (2, "", GOOD.replace("-1", "A" * 5000), [], "characters"),
        (2, "", "", [], "expected one sentence"),
        (1, "", "Traceback (most recent call last):\n  x\nValueError: y\n", [], "a traceback: ValueError: y"),
        (0, "Traceback (most recent call last):\n", "", ["finished"], "a traceback"),
        (0, "", "", ["running"], "a run is running"),
        (-9, "", "", [], "exit code -9"),
    ],
)
def test_the_judge(code, out, err, left, says):
    found = faults(CASE, code, out, err, left)
    assert found == [] if says is None else any(says in fault for fault in found), found


def test_an_input_that_never_ends(monkeypatch):
    monkeypatch.setattr("tests.fuzz.judge.SECONDS", 0.5)
    assert judged(Case("overrides", ("train.steps=100000", "tracking=none"), ("train",))) == ["not over after 0.5 s"]


def test_inputs_as_the_judge_runs_them():
    assert judged(CASE) == []
    assert judged(Case("overrides", (*overrides.SMALL, "method=grpo"), ("method",))) == []
