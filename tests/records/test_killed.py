"""A run whose process is gone: the next command, the status and the report say so, and whether memory was the reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from rlrt.records import killed
from rlrt.records.lease import hold_lease
from rlrt.reporting.jobs import read_job
from rlrt.sweep.state import job_state
from tests.conftest import ROOT
from tests.forked import forked
from tests.helpers import ONE_STEP

RUN = [
    *ONE_STEP,
    "train.steps=3",
    "train.rollouts_per_prompt=2",
    "tracking=none",
    "teacher.probe_prompts=0",
    "hydra.run.dir=run",
]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A pretended kernel that has killed 5 processes for lack of memory."""
    proc = tmp_path / "proc"
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("b1\n")
    (proc / "vmstat").write_text("nr_free 7\noom_kill 5\n")
    monkeypatch.setattr(killed, "PROC", proc)
    return proc


def left(folder, count, boot="b1", host=None):
    """What a run that was killed leaves: the state running, and a lease that nobody holds."""
    folder.mkdir()
    with hold_lease(folder / "lease"):
        pass
    kills = {"host": host or socket.gethostname(), "boot": boot, "count": count}
    (folder / "summary.json").write_text(json.dumps({"state": "running", "step": 2, killed.KILLS: kills}))
    (folder / "manifest.json").write_text(json.dumps({"seed": 0, "overrides": []}))
    return folder


@pytest.mark.parametrize(
    ("then", "more", "said"),
    [
        (3, {}, "for lack of memory, since that ended 2 of this machine's processes meanwhile"),
        (5, {}, None),
        (3, {"boot": "b0"}, None),
        (3, {"host": "elsewhere"}, None),
    ],
    ids=["two kills since", "none since", "the machine was started anew", "another machine"],
)
def test_memory_is_named_only_where_the_kernel_killed_meanwhile(machine, tmp_path, then, more, said):
    folder = left(tmp_path / "run", then, **more)
    job, state = read_job(folder), job_state(folder)
    assert (job.state, state.name) == ("lost", "lost")
    assert job.error == (state.error or killed.KILLED)
    assert (said in job.error) if said else job.error == killed.KILLED


def test_a_run_that_is_running_is_running(machine, tmp_path):
    folder = left(tmp_path / "run", 3)
    with hold_lease(folder / "lease"):
        assert (read_job(folder).state, read_job(folder).error) == ("running", "")


def test_a_kernel_that_does_not_count_says_nothing(machine, tmp_path):
    (machine / "vmstat").write_text("nr_free 7\n")
    assert killed.kills() == {}
    assert read_job(left(tmp_path / "run", 3)).error == killed.KILLED


def test_the_next_command_says_that_the_last_one_was_killed(tmp_path):
    """A run is killed by SIGKILL after its first step; the same command goes on, and its warning is in the log."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [*RUN[:-1], "train.steps=2000", "hydra.run.dir=run"]
    process = subprocess.Popen([sys.executable, "-m", "rlrt.run", *arguments], cwd=tmp_path, env=environment)
    record = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not (record.exists() and record.stat().st_size > 0):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["state"] == "running"
    assert summary[killed.KILLS] == killed.kills() | {"count": summary[killed.KILLS]["count"]}
    assert read_job(tmp_path / "run").state == "lost"
    again = forked("run", [*arguments, "train.steps=1", "resume=never"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "this run's earlier life did not end by itself: its process was killed" in again.stdout + again.stderr
