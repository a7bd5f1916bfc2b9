"""A real one-node SLURM (``make slurm`` brings it up): arrays, time limits, kills, a driver that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest

from tests.sweep.test_driver import SMALL, finish, only, run, start, summaries, wait_for
from tests.test_resume import numbers

pytestmark = pytest.mark.slurm

SLURM = (
    "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=10",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster():
    if shutil.which("sinfo") is None or subprocess.run(["sinfo", "-h"], capture_output=True, check=False).returncode:
        pytest.fail("no SLURM is up; run make slurm first")


def submissions(cwd):
    return len(list(only(cwd).glob("submitit/*_submission.sh")))


def slurm_id(cwd, part):
    (spec,) = only(cwd).glob(f"*{part}*/job.json")
    return json.loads(spec.read_text()).get("slurm_id")


def steps_done(cwd, part):
    for record in (cwd / "outputs").glob(f"sweeps/*/*{part}*/metrics.jsonl"):
        return len(record.read_text().splitlines()) - 1
    return 0


def test_an_array_and_nothing_twice(tmp_path):
    command = ("-m", "method=rlrt,grpo", "train.steps=5", *SMALL, *SLURM)
    code, output = run(tmp_path, *command)
    assert code == 0, output
    assert "2 finished" in output
    assert submissions(tmp_path) == 1
    code, output = run(tmp_path, *command)
    assert (code, submissions(tmp_path)) == (0, 1), output


def test_submit_and_leave_then_come_back(tmp_path):
    command = ("-m", "method=grpo", "train.steps=40", *SMALL, *SLURM)
    code, output = run(tmp_path, *command, "hydra.launcher.wait=false")
    assert code == 0, output
    assert "rlrt.status" in output
    code, output = run(tmp_path, str(only(tmp_path)), module="rlrt.status")
    assert "1 running" in output
    code, output = run(tmp_path, *command)
    assert code == 0, output
    assert submissions(tmp_path) == 1
    assert {s["state"] for s in summaries(tmp_path).values()} == {"finished"}


def test_the_time_limit_saves_requeues_and_goes_on(tmp_path):
    # one minute, signalled 40 s before: SLURM may send it up to a minute early, so several requeues are fine
    steps = 150
    code, output = run(
        tmp_path, "-m", "method=rlrt", f"train.steps={steps}", "train.save_every=0", "train.prompts_per_step=8", *SMALL[1:],
        *SLURM[:3], "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=40", timeout=400,
    )  # fmt: skip
    assert code == 0, output
    (job,) = only(tmp_path).glob("*/job.json")
    assert "requeued as" in (job.parent / "log.txt").read_text()
    assert json.loads(job.read_text())["retries"] == 0
    whole = tmp_path / "whole"
    run(
        tmp_path,
        "method=rlrt",
        f"train.steps={steps}",
        "train.prompts_per_step=8",
        *SMALL[1:],
        f"hydra.run.dir={whole}",
    )
    assert numbers(job.parent) == numbers(whole)


def test_a_killed_step_is_noticed_and_started_again(tmp_path):
    driver = start(tmp_path, "-m", "method=grpo", "seed=0,1", "train.steps=60", "train.save_every=5", *SMALL, *SLURM)
    wait_for(lambda: steps_done(tmp_path, "seed=0") > 7)
    (lease,) = only(tmp_path).glob("*seed=0*/lease.json")
    os.kill(int(json.loads(lease.read_text())["pid"]), signal.SIGKILL)  # no signal that could be caught, no accounting
    code, output = finish(driver, 200)
    assert code == 0, output
    assert "2 finished" in output
    (spec,) = only(tmp_path).glob("*seed=0*/job.json")
    assert json.loads(spec.read_text())["retries"] == 1


def test_a_killed_driver_leaves_the_jobs_and_the_next_one_waits_for_them(tmp_path):
    command = ("-m", "method=grpo", "seed=0,1", "train.steps=60", *SMALL, *SLURM)
    driver = start(tmp_path, *command)
    wait_for(lambda: steps_done(tmp_path, "seed=1") > 2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    for spec in only(tmp_path).glob("*/job.json"):  # as if it had died before it could note the ids
        spec.write_text(json.dumps(json.loads(spec.read_text()) | {"slurm_id": None}))
    code, output = run(tmp_path, *command, timeout=200)
    assert code == 0, output
    assert submissions(tmp_path) == 1
    assert all(s["step"] == 60 for s in summaries(tmp_path).values())


def test_cancel(tmp_path):
    run(tmp_path, "-m", "method=grpo", "train.steps=4000", *SMALL, *SLURM, "hydra.launcher.wait=false")
    wait_for(lambda: steps_done(tmp_path, "grpo") > 2)
    code, _ = run(tmp_path, str(only(tmp_path)), module="rlrt.cancel")
    assert code == 0
    job = str(slurm_id(tmp_path, "grpo"))
    wait_for(lambda: not subprocess.run([*QUEUE, job], capture_output=True, text=True, check=False).stdout.strip())


QUEUE = ["squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-j"]
