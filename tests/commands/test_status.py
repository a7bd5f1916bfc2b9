"""``rlrt.status`` of a single run: each way it can stand, and what is no run."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlrt import status
from rlrt.errors import UserError
from rlrt.records import killed
from rlrt.records.lease import hold_lease
from tests.conftest import ROOT
from tests.forked import forked
from tests.helpers import ONE_STEP


def run_of(folder, state, host=None, **more):
    """What a run of 9 steps leaves after 2, its process gone."""
    folder.mkdir(parents=True)
    with hold_lease(folder / "lease"):
        pass
    if host is not None:
        (folder / "lease.json").write_text(json.dumps({"pid": 7, "host": host}))
    (folder / "summary.json").write_text(json.dumps({"state": state, "step": 2, **more}))
    (folder / "manifest.json").write_text("{}")
    (folder / "config.yaml").write_text("train: {steps: 9}\n")
    (folder / "metrics.jsonl").write_text('{"step": 2, "reward/mean": 0.25, "time/step_s": 1.5}\n')
    return folder


@pytest.mark.parametrize(
    ("state", "more", "said"),
    [
        ("finished", {}, "2/9   0.250     -     -\nlog: "),
        ("failed", {"error": "UserError: no room"}, "failed: UserError: no room"),
        ("interrupted", {}, "interrupted: the same command goes on from its newest checkpoint"),
        ("running", {}, "lost: its process was killed; the same command goes on"),
        ("running", {"host": "elsewhere"}, "run by pid 7 on elsewhere; whether it still runs cannot be seen from here"),
    ],
)
def test_the_state_of_one_run_is_told(tmp_path, state, more, said):
    text, active = status.told(status.asked_for(run_of(tmp_path / "run", state, **more)))
    assert said in text
    assert "2/9" in text
    assert text.endswith(f"log: {tmp_path}/run/log.txt")
    assert active == ("host" in more)


def test_a_run_that_was_killed_for_memory_is_named(tmp_path, monkeypatch):
    now = {"host": socket.gethostname(), "boot": "b", "count": 4}
    monkeypatch.setattr(killed, "kills", lambda: now)
    folder = run_of(tmp_path / "run", "running", **{killed.KILLS: now | {"count": 3}})
    assert "lost: its process was killed, probably by the kernel for lack of memory" in status.status_of_run(folder)


def test_a_run_is_found_by_its_name_and_what_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "outputs/runs/mine", "finished")
    assert "finished" in status.status_of_run(status.asked_for(Path("mine")))
    for other in ("outputs", "nothing"):
        with pytest.raises(UserError, match=r"sweep \(with \*/job\.json\), found none in \w+, and no run either"):
            status.asked_for(Path(other))


def test_the_command_tells_a_run_that_runs_and_then_that_it_was_killed(tmp_path):
    arguments = [*ONE_STEP, "train.steps=2000", "train.rollouts_per_prompt=2", "tracking=none", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rlrt.run", *arguments, "teacher.probe_prompts=0"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        running = forked("status", ["run"], tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    gone = forked("status", ["run", "--watch"], tmp_path)
    assert (running.returncode, gone.returncode) == (0, 0), running.stderr + gone.stderr
    assert f"run by pid {process.pid} on {socket.gethostname()}" in running.stdout
    assert "/2000" in running.stdout
    assert "lost: its process was killed" in gone.stdout
