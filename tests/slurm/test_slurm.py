"""A real one-node SLURM (``make slurm`` brings it up): arrays, time limits, kills, a driver that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest

from tests.sweep.test_driver import SMALL, finish, only, run, start, summaries, trial_states, wait_for
from tests.test_resume import numbers
from tests.trackers.test_mlflow import client

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


PREEMPTED = ("method=rlrt", "seed=5", "train.steps=60", "train.prompts_per_step=8", *SMALL[1:])
"""A run of some 15 seconds, to be disturbed in several ways."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, output = run(folder, *PREEMPTED, "train.save_every=0", f"hydra.run.dir={folder}/run")
    assert code == 0, output
    return numbers(folder / "run")


@pytest.mark.parametrize("number", ["USR2", "TERM"])
def test_a_signal_saves_requeues_and_goes_on(tmp_path, undisturbed, number):
    """``scancel --signal``, as SLURM sends it before a preemption with some grace; nothing else was saved before."""
    store = f"sqlite:///{tmp_path}/store.db"
    driver = start(tmp_path, "-m", *PREEMPTED, "train.save_every=0", f"tracking.uri={store}", *SLURM)
    wait_for(lambda: steps_done(tmp_path, "rlrt") > 5)
    subprocess.run(["scancel", f"--signal={number}", str(slurm_id(tmp_path, "rlrt"))], check=True)
    code, output = finish(driver, 200)
    assert code == 0, output
    (job,) = only(tmp_path).glob("*/job.json")
    assert "requeued as" in (job.parent / "log.txt").read_text()
    assert json.loads(job.read_text())["retries"] == 0
    assert submissions(tmp_path) == 1
    assert numbers(job.parent) == undisturbed
    parent = json.loads((only(tmp_path) / "sweep.json").read_text())["mlflow_run_id"]
    (child,) = client(store).search_runs(["1"], f"tags.mlflow.parentRunId = '{parent}'")  # one run for both lives
    history = client(store).get_metric_history(child.info.run_id, "reward/mean")
    assert sorted(m.step for m in history) == list(range(1, 61))
    assert child.data.tags["rlrt.state"] == "finished"


def test_a_job_of_higher_priority_takes_the_node_and_gives_it_back(tmp_path, undisturbed):
    """Plain preemption: SIGTERM, SIGKILL a few seconds later, and SLURM itself queues the job again."""
    driver = start(tmp_path, "-m", *PREEMPTED, "train.save_every=5", *SLURM)
    wait_for(lambda: steps_done(tmp_path, "rlrt") > 7)
    subprocess.run(
        ["srun", "-p", "urgent", "--exclusive", "-t1", "sleep", "3"], check=True, capture_output=True, timeout=90
    )
    code, output = finish(driver, 200)
    assert code == 0, output
    (job,) = only(tmp_path).glob("*/job.json")
    assert (job.parent / "log.txt").read_text().count("Going on from") >= 1
    assert submissions(tmp_path) == 1
    assert numbers(job.parent) == undisturbed


def test_a_job_that_was_cancelled_is_left_alone_until_the_command_comes_again(tmp_path):
    command = ("-m", "method=grpo", "seed=0,1", "train.steps=60", "train.save_every=5", *SMALL, *SLURM)
    driver = start(tmp_path, *command)
    wait_for(lambda: steps_done(tmp_path, "seed=0") > 7)
    subprocess.run(["scancel", str(slurm_id(tmp_path, "seed=0"))], check=True)
    code, output = finish(driver, 200)
    assert code == 1, output
    assert "it was cancelled; the same command goes on with it" in output
    assert submissions(tmp_path) == 1
    code, output = run(tmp_path, *command, timeout=200)
    assert code == 0, output
    assert "2 finished" in output


def test_a_search_runs_and_prunes_on_slurm(tmp_path):
    """A learning rate that learns and one that destroys: the second is pruned while it runs."""
    code, output = run(
        tmp_path, "-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "train.lr=1e-3,9.0",
        "method=grpo", "train.steps=60", "train.prompts_per_step=4", "train.eval_every=5", "eval.prompts=32", "tracking=none",
        "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.lower=0.1", *SLURM,
        "hydra.sweeper.n_jobs=2", timeout=300,
    )  # fmt: skip
    assert code == 0, output
    assert sorted(trial_states(only(tmp_path))) == ["COMPLETE", "PRUNED"]
    best = json.loads((only(tmp_path) / "best.json").read_text())["best"]
    assert best[0]["overrides"] == ["train.lr=0.001"]
    pruned = [s for s in summaries(tmp_path).values() if s["state"] == "pruned"]
    assert [s["step"] < 60 for s in pruned] == [True]


def test_what_sbatch_refuses_is_one_sentence(tmp_path):
    code, output = run(tmp_path, "-m", "method=grpo", *SMALL, *SLURM, "hydra.launcher.partition=nothing")
    assert code == 2
    assert "error: hydra/launcher=slurm: sbatch refused the jobs: " in output
    assert "invalid partition" in output
    assert "Traceback" not in output


def test_one_element_of_an_array_is_queued_again_without_its_siblings(tmp_path):
    """The last one, whose raw SLURM id is the whole array's."""
    driver = start(tmp_path, "-m", "method=grpo", "seed=0,1", "train.steps=60", "train.save_every=0", *SMALL, *SLURM)
    wait_for(lambda: min(steps_done(tmp_path, "seed=0"), steps_done(tmp_path, "seed=1")) > 5)
    subprocess.run(["scancel", "--signal=USR2", str(slurm_id(tmp_path, "seed=1"))], check=True)
    code, output = finish(driver, 200)
    assert code == 0, output
    logs = {part: next(only(tmp_path).glob(f"*{part}*/log.txt")).read_text() for part in ("seed=0", "seed=1")}
    assert "requeued as" in logs["seed=1"]
    assert "Going on from" in logs["seed=1"]
    assert "requeued" not in logs["seed=0"]
    assert "Going on from" not in logs["seed=0"]
    assert submissions(tmp_path) == 1
