"""When checkpoints are written, which are kept, and when a run ends at an alarm."""

from __future__ import annotations

import json

import pytest

from rlrt.distributed.world import ALONE
from rlrt.execution.execute import execute
from rlrt.execution.saving import SaveRule
from rlrt.methods.declared import Alarm
from rlrt.paths import listed
from rlrt.records.folder import RunFolder
from tests.helpers import ONE_STEP, settings

SMALL = (*ONE_STEP, "tracking=none", "train.rollouts_per_prompt=4")


def rule(tmp_path, *overrides, ticks=()):
    seconds = iter([0.0, *ticks])
    return SaveRule(settings(*overrides).train, tmp_path, ALONE, lambda: next(seconds))


def run(folder, *overrides):
    return execute(settings(*SMALL, *overrides), folder, lambda line: None, lambda: False, progress=False)


def test_by_steps(tmp_path):
    by_steps = rule(tmp_path, "train.save_every=3", "train.save_minutes=0", ticks=[0.0, 0.0])
    assert [by_steps(step, {}) for step in range(1, 7)] == [False, False, True, False, False, True]


def test_by_minutes_since_the_last_checkpoint_whatever_wrote_it(tmp_path):
    # each step takes 50 s; two minutes have passed at the third step's end, and again three steps after the one by steps
    ticks = [50.0, 100.0, 150.0, 150.0, 200.0, 250.0, 250.0, 300.0, 350.0, 400.0, 400.0]
    timed = rule(tmp_path, "train.save_every=5", "train.save_minutes=2", ticks=ticks)
    assert [timed(step, {}) for step in range(1, 9)] == [False, False, True, False, True, False, False, True]


def test_no_steps_and_no_minutes_means_the_end_alone(tmp_path):
    never = rule(tmp_path, "train.save_every=0", "train.save_minutes=0")
    assert not any(never(step, {}) for step in range(1, 50))


def test_the_best_is_written_at_once_and_remembered(tmp_path):
    best = rule(tmp_path, "train.save_every=0", "train.save_minutes=0", "train.keep_best=eval/greedy", ticks=[0.0] * 9)
    values = [None, 0.5, 0.4, 0.5, float("nan"), 0.6]
    assert [best(i, {} if v is None else {"eval/greedy": v}) for i, v in enumerate(values)] == [
        False, True, False, False, False, True,
    ]  # fmt: skip
    assert json.loads((tmp_path / "best.json").read_text()) == {"metric": "eval/greedy", "value": 0.6, "step": 5}
    torn = rule(tmp_path, "train.keep_best=eval/greedy", "train.save_every=0", "train.save_minutes=0", ticks=[0.0] * 9)
    assert torn(5, {"eval/greedy": 0.6})  # noted, but a kill came before the checkpoint
    (tmp_path / "step_5").mkdir()
    later = rule(tmp_path, "train.keep_best=eval/greedy", "train.save_every=0", "train.save_minutes=0", ticks=[0.0] * 9)
    assert not later(6, {"eval/greedy": 0.6})


def test_a_run_keeps_its_best_checkpoint_beside_the_last(tmp_path):
    run(
        tmp_path, "train.steps=6", "train.save_every=1", "train.keep_last=1", "train.eval_every=1",
        "train.keep_best=policy/entropy", "train.lr=1e-2",
    )  # fmt: skip
    rows = [r for r in RunFolder(tmp_path).record.read() if r["step"] > 0]
    highest = max(rows, key=lambda r: r["policy/entropy"])["step"]
    kept = {int(p.name.removeprefix("step_")) for p in listed(tmp_path / "checkpoints")}
    assert kept == {highest, 6}


def test_an_alarm_ends_a_run_for_good_where_that_was_asked_for(tmp_path, monkeypatch):
    alarms = [Alarm("rollout/length_mean", "responses have a length", above=0.0)]
    monkeypatch.setattr("rlrt.execution.execute.ALARMS", alarms)
    on = run(tmp_path / "on", "train.steps=4", "train.stop_on_alarm=true")
    assert (on["state"], on["step"]) == ("pruned", 1)
    assert on["stopped_by"].startswith("step 1: responses have a length (rollout/length_mean = ")
    assert listed(tmp_path / "on" / "checkpoints")  # what it was is saved
    assert run(tmp_path / "on", "train.steps=4", "train.stop_on_alarm=true")["step"] == 1
    off = run(tmp_path / "off", "train.steps=2")
    assert (off["state"], off["step"]) == ("finished", 2)


def test_an_alarm_rings_where_teachers_are_missing_because_they_are_too_long(tmp_path, caplog):
    typed = ("method=rlrt", "train.prompts_per_step=8", "train.rollouts_per_prompt=8")
    sentence = "more than a tenth of the teachers are missing because their prompts are too long"
    # 16 tokens are left by a response of 48, and more by all others: there is room for nearly every sibling
    run(tmp_path / "whole", *typed, "model.context_length=64")
    (step,) = [row for row in RunFolder(tmp_path / "whole").record.read() if row["step"] == 1]
    assert step["teacher/share"] > 0.2
    assert step["teacher/too_long_share"] <= 0.1
    assert sentence not in caplog.text
    run(tmp_path / "short", *typed, "teacher.max_context_tokens=20")
    assert f"step 1: {sentence}" in caplog.text


@pytest.fixture
def as_before():
    import torch

    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_changes_nothing_on_the_cpu(tmp_path, monkeypatch, as_before):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "VLLM_BATCH_INVARIANT"):
        monkeypatch.setenv(name, "unset")
        monkeypatch.delenv(name)
    numbers = []
    for name in ("false", "true"):
        run(tmp_path / name, "train.steps=2", f"deterministic={name}")
        rows = RunFolder(tmp_path / name).record.read()
        numbers.append([{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows])
    assert numbers[0] == numbers[1]
