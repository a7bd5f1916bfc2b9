"""What a job's process does around its run: states of earlier lives, signals, requeueing, an identity that changed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess

import pytest

import rlrt.config.load
import rlrt.execution.execute
from rlrt.config.compose import composer
from rlrt.records import folder
from rlrt.sweep import worker
from rlrt.sweep.jobs import job_of
from tests.commands.test_run import SMALL


@pytest.fixture
def planned(tmp_cwd):
    with composer() as compose:
        job = job_of(tmp_cwd / "s", ("method=grpo", *SMALL, "tracking=none"), compose)
    job.write()
    return job.folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    "before",
    [{"state": "interrupted", "mlflow_complete": True}, {"state": "failed", "failure": "memory", "error": "old"}],
)
def test_an_earlier_lifes_words_are_over_before_anything_slow(planned, monkeypatch, before):
    """Or a job that dies while loading would be taken for an interrupted one, and started again for ever."""
    (planned / "summary.json").write_text(json.dumps(before))
    seen = []

    def dies(*args, **more):
        seen.append(summary(planned))
        raise MemoryError("now")

    monkeypatch.setattr(rlrt.execution.execute, "execute", dies)
    assert worker.run(str(planned)) == "failed"
    assert (seen[0]["state"], seen[0]["mlflow_complete"]) == ("running", False)
    assert (summary(planned)["failure"], summary(planned)["error"]) == ("memory", "MemoryError: now")


def test_code_that_changed_while_a_job_waited_does_not_run_under_the_old_identity(planned):
    spec = json.loads((planned / "job.json").read_text())
    (planned / "job.json").write_text(json.dumps(spec | {"identity": "0" * 12}))
    assert worker.run(str(planned)) == "failed"
    assert summary(planned)["failure"] == "input"  # undone, the same command goes on
    assert "changed since this job was planned" in summary(planned)["error"]
    assert not (planned / "metrics.jsonl").exists()


def test_a_signal_before_the_run_begins_is_heard(planned, monkeypatch):
    execute, asked = rlrt.execution.execute.execute, []

    def hears(settings, path, say, stop, *args, **more):
        asked.append(stop())
        return execute(settings, path, say, stop, *args, **more)

    def load_slowly(*args):
        signal.raise_signal(signal.SIGTERM)
        return load(*args)

    load = rlrt.config.load.load
    monkeypatch.setattr(
        "rlrt.execution.stop.UNTOLD_S", 600.0
    )  # however slow the machine is, the step's end is not too late
    monkeypatch.setattr(rlrt.execution.execute, "execute", hears)
    monkeypatch.setattr(rlrt.config.load, "load", load_slowly)
    assert worker.run(str(planned)) == "interrupted"
    assert asked == [True]
    assert summary(planned)["step"] == 1  # the first step boundary


@pytest.mark.parametrize(
    ("number", "left", "after", "state"),
    [
        (signal.SIGUSR2, [], 0, "failed"),  # at the limit, and nothing was ever saved
        (signal.SIGUSR2, [3], 0, "failed"),  # nothing since the life began
        (signal.SIGUSR2, [3], 5, "interrupted"),
        (signal.SIGUSR2, [], 1, "interrupted"),
        (signal.SIGTERM, [3], 0, "interrupted"),  # a preemption says nothing about the limit
    ],
)
def test_a_life_without_a_checkpoint_is_no_reason_for_another(planned, monkeypatch, number, left, after, state):
    def saved(step):
        (planned / "checkpoints" / f"step_{step}").mkdir(parents=True)
        (planned / "checkpoints" / f"step_{step}" / "config.json").write_text("{}")

    def ends(settings, path, say, stop, *args, **more):
        signal.raise_signal(number)
        if after:
            saved(after)
        return {"state": "interrupted", "step": after}

    for step in left:
        saved(step)
    queued = []
    monkeypatch.setattr(
        worker, "saved_steps", lambda path: {int(p.name[5:]): p for p in path.glob("checkpoints/step_*")}
    )
    monkeypatch.setattr(rlrt.execution.execute, "execute", ends)
    monkeypatch.setattr(worker, "requeue", queued.append)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert worker.run(str(planned)) == state
    assert queued == ([] if state == "failed" else [number])
    if state == "failed":
        assert summary(planned)["failure"] == "limit"
        assert "raise hydra.launcher.timeout_min, or make steps shorter" in summary(planned)["error"]


@pytest.mark.parametrize(
    ("environment", "number", "state", "asked"),
    [
        ({"SLURM_JOB_ID": "9"}, signal.SIGUSR2, "RUNNING", "9"),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1"},
            signal.SIGUSR2,
            "RUNNING",
            "9_1",
        ),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1"},
            signal.SIGTERM,
            "RUNNING",
            "9_1",
        ),
        ({"SLURM_JOB_ID": "9"}, signal.SIGTERM, "CANCELLED", None),
        ({"SLURM_JOB_ID": "9"}, signal.SIGINT, "RUNNING", None),
        ({}, signal.SIGUSR2, "RUNNING", None),
    ],
)
def test_what_is_queued_again(monkeypatch, environment, number, state, asked):
    """The raw id of an array's last element is the whole array's: its siblings would be queued again with it."""
    calls = []

    def answer(command, **more):
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, state + "\n", "")

    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(subprocess, "run", answer)
    worker.requeue(number)
    requeued = [c[2] for c in calls if c[:2] == ["scontrol", "requeue"]]
    assert requeued == ([asked] if asked else [])


def test_a_disk_that_is_full_at_a_jobs_start_is_said_once_the_lease_has_given_its_bytes_back(tmp_path, monkeypatch):
    """Or the job counted as lost, and its driver would start it again and again."""
    write = folder.write_json

    def full(file, values):
        if (tmp_path / "lease.1").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write(file, values)

    monkeypatch.setattr(folder, "write_json", full)
    assert worker.run(str(tmp_path)) == "failed"
    assert (summary(tmp_path)["state"], summary(tmp_path)["failure"]) == ("failed", "disk")
    assert "the disk is full" in summary(tmp_path)["error"]


@pytest.mark.parametrize(
    ("before", "said"), [({}, False), ({"state": "interrupted"}, False), ({"state": "running", "begun": True}, True)]
)
def test_an_earlier_life_is_spoken_of_only_if_there_was_one(planned, caplog, before, said):
    """The job's process calls the run running before the run itself begins."""
    (planned / "summary.json").write_text(json.dumps(before))
    assert worker.run(str(planned)) == "finished"
    assert ("earlier life did not end by itself" in caplog.text) == said
    assert summary(planned)["begun"]
