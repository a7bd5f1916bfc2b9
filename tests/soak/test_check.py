"""The soak's comparison sees what it is there to see."""

from __future__ import annotations

import itertools
import shutil

import pytest

from rlrt.execution.execute import execute
from tests.helpers import settings
from tests.records.test_mlflow import client
from tests.soak.check import faults
from tests.soak.plan import LASTS_S, plan

WORDS = (
    "train.steps=3", "train.prompts_per_step=2", "train.eval_every=0", "train.save_every=1", "eval.prompts=2", "method=grpo",
    "tracking.samples_every=1", "tracking.samples=1",
)  # fmt: skip


@pytest.fixture
def sweeps(tmp_cwd, uri):
    """A sweep of one job with its runs in MLflow, a copy as the undisturbed one, and MLflow's file."""
    sweep, calm, key = tmp_cwd / "mine", tmp_cwd / "calm", f"tracking.uri={uri}"
    store = client(uri)
    store.create_run(store.create_experiment("mine"))  # the sweep's own
    execute(settings(*WORDS, key, "tracking.experiment=mine"), sweep / "job", lambda line: None, lambda: False)
    (sweep / "job" / "job.json").write_text("{}")
    shutil.copytree(sweep, calm)
    file = tmp_cwd / "store.db"
    assert faults(sweep, calm, file) == []
    return sweep, calm, file


def test_what_was_changed_is_named(sweeps):
    sweep, calm, file = sweeps
    record = sweep / "job" / "metrics.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join([*lines[:-1], lines[-2], lines[-1]]))
    assert faults(sweep, calm, file) == ["job: record differs"]
    record.write_text("".join(lines[:-1]))
    found = faults(sweep, calm, file)
    assert found[0] == "job: record differs"
    assert any("MLflow's steps of reward/mean are [1, 2, 3], not [1, 2]" in line for line in found)
    record.write_text("".join(lines))
    (sweep / "job" / "checkpoints" / "step_9.tmp").mkdir()
    (weights,) = (sweep / "job" / "checkpoints" / "step_3").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert faults(sweep, calm, file) == [
        "job: checkpoints/step_3/model.safetensors differs", "job: left behind: step_9.tmp"
    ]  # fmt: skip


def test_what_is_lost_or_there_twice_is_named(sweeps):
    sweep, calm, file = sweeps
    store = client(f"sqlite:///{file}")
    experiment = store.get_experiment_by_name("mine").experiment_id
    store.create_run(experiment)
    assert faults(sweep, calm, file) == ["MLflow has 3 runs for 1 jobs and one sweep"]
    shutil.copytree(sweep / "job", sweep / "other")
    assert "other: nobody asked for this job" in faults(sweep, calm, file)
    shutil.rmtree(sweep / "job")
    assert "job: the job is not there" in faults(sweep, calm, file)


def test_a_plan_follows_from_its_seed():
    one = plan(60, 0, 25)
    assert one == plan(60, 0, 25) != plan(60, 1, 25)
    assert 100 < len(one) < 200
    assert all(0 < a.at < b.at <= 3600 for a, b in itertools.pairwise(one))
    assert all((d.lasts > 0) == (d.kind in LASTS_S) for d in one)
