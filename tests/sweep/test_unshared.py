"""Where file locks hold nobody off: two processes of a job, two drivers, and a job that SLURM runs elsewhere meanwhile.

Real processes, in which ``flock`` does nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from rlrt.cancel import stop
from rlrt.config.compose import composer
from rlrt.status import told
from rlrt.sweep.jobs import job_of
from tests.conftest import ROOT
from tests.execution.test_resume import numbers
from tests.forked import forked
from tests.records.test_mlflow import client
from tests.sweep.test_driver import ENVIRONMENT, finish, only, start, wait_for

SMALL = ("train.prompts_per_step=2", "eval.prompts=4", "train.eval_every=0", "train.steps=6", "train.save_every=2")
NO_LOCKS = """
import fcntl
fcntl.flock = lambda *_: None
import rlrt.records.claims as claims
claims.BEAT_S, claims.BEATS, claims.LAG_S = 0.5, 10, 1.0
"""
WORK = "import sys; from rlrt.sweep.worker import run; print('state:', run(sys.argv[1]))"


@pytest.fixture
def unlocked(tmp_path):
    """The environment of processes without locks."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_LOCKS)
    return {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}


@pytest.fixture
def job(tmp_cwd, uri, held):
    """(folder of a job that waits in its fourth step, what holds it)."""
    hold = held(steps=3)
    with composer() as compose:
        planned = job_of(tmp_cwd / "s", ("method=grpo", *SMALL, f"tracking.uri={uri}", *hold.keys), compose)
    planned.write()
    return planned.folder, hold


def work(folder, cwd, environment):
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(folder)],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def undisturbed(folder, whole, uri, cwd):
    """One record for each step, as of a run that nobody disturbed, and one run in MLflow that has each step once."""
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5, 6]
    done = forked(
        "run", ["method=grpo", *SMALL, "tracking=none", "teacher.probe_prompts=0", f"hydra.run.dir={whole}"], cwd
    )
    assert done.returncode == 0, done.stderr
    assert numbers(folder) == numbers(whole)
    (run,) = client(uri).search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client(uri).get_metric_history(run.info.run_id, "reward/mean")] == [1, 2, 3, 4, 5, 6]


def test_two_processes_of_a_job(job, tmp_cwd, uri, unlocked):
    """Two at the same moment, and a third one in the middle of the winner's fourth step."""
    folder, hold = job
    first = [work(folder, tmp_cwd, unlocked) for _ in range(2)]
    (winner,) = wait_for(hold.waiting)
    third = work(folder, tmp_cwd, unlocked)
    for process in (third, *(p for p in first if p.pid != winner)):
        code, output = finish(process)
        assert (code, "state: running" in output) == (0, True), output
        assert output.count(f"WARNING: file locks do not hold in {folder}: process {winner} on ") == 1
    hold.release()
    code, output = finish(next(p for p in first if p.pid == winner))
    assert (code, "state: finished" in output) == (0, True), output
    undisturbed(folder, tmp_cwd / "whole", uri, tmp_cwd)


def shown(uri):
    """The steps that MLflow has of its only run; none before there is a run."""
    return [
        metric.step
        for run in client(uri).search_runs(["1"])
        for metric in client(uri).get_metric_history(run.info.run_id, "reward/mean")
    ]


def test_a_job_that_comes_back_after_it_was_run_elsewhere(job, tmp_cwd, uri, unlocked):
    """It stood still within a step, as behind a cut cable, and goes on once another one has taken over and finished."""
    folder, hold = job
    first = work(folder, tmp_cwd, unlocked)
    wait_for(hold.waiting)
    # standing still in the middle of a write it would lock the other one out: test_a_store_that_somebody_holds_locked
    wait_for(lambda: shown(uri) == [1, 2, 3])
    os.kill(first.pid, signal.SIGSTOP)
    second = work(folder, tmp_cwd, unlocked)
    wait_for(lambda: len(hold.waiting()) == 2)
    hold.release()
    code, output = finish(second)
    assert (code, "state: finished" in output) == (0, True), output
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    os.kill(first.pid, signal.SIGCONT)
    code, output = finish(first)
    assert code == 2, output
    assert f"error: {folder} was taken over by process {second.pid} on " in output
    assert output.count("error: ") == 1
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    undisturbed(folder, tmp_cwd / "whole", uri, tmp_cwd)


@pytest.mark.long
def test_two_drivers(tmp_path, unlocked, held):
    """At the same moment; then the one that drives stands still, is taken for gone, and comes back."""
    hold = held(steps=3)
    words = ("-m", "method=grpo", "seed=0,1", *SMALL, "tracking=none", *hold.keys)
    drivers = [start(tmp_path, *words, **unlocked) for _ in range(2)]
    wait_for(lambda: len(hold.waiting()) == 2)
    refused = wait_for(lambda: next((d for d in drivers if d.poll() is not None), None))
    winner = next(d for d in drivers if d is not refused)
    code, output = finish(refused)
    assert code == 2, output
    assert f"another driver (pid {winner.pid} on " in output
    assert output.count(f"WARNING: file locks do not hold in outputs/sweeps/{only(tmp_path).name}") == 1
    os.kill(winner.pid, signal.SIGSTOP)
    third = start(tmp_path, *words, **unlocked)
    wait_for(lambda: json.loads((only(tmp_path) / "driver.json").read_text())["pid"] == third.pid)
    os.kill(winner.pid, signal.SIGCONT)
    assert wait_for(winner.poll) == 2
    hold.release()
    code, output = finish(third)
    assert f"was taken over by process {third.pid} on " in finish(winner)[1]  # its pipe, which its jobs had too
    assert code == 0, output
    assert "2 finished" in output
    records = list(only(tmp_path).glob("*/metrics.jsonl"))
    assert len(records) == 2
    for record in records:
        assert [json.loads(line)["step"] for line in record.read_text().splitlines()] == [0, 1, 2, 3, 4, 5, 6]


def test_a_sweep_whose_locks_are_not_seen_is_told_and_cancelled(tmp_path, unlocked, held):
    """By processes that see every lock free, as on another machine; the driver and its jobs are alive."""
    hold = held(steps=3)
    driver = start(tmp_path, "-m", "method=grpo", "seed=0,1", *SMALL, "tracking=none", *hold.keys, **unlocked)
    wait_for(lambda: len(hold.waiting()) == 2)
    text, active = told(only(tmp_path))
    assert f"driven by pid {driver.pid} on " in text
    assert "2 running" in text
    assert active
    stop(only(tmp_path))
    hold.release()
    code, output = finish(driver)
    assert code == 130, output
    text, active = told(only(tmp_path))
    assert "2 interrupted" in text
    assert not active
