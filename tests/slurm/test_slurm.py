"""A real one-node SLURM (``make slurm`` brings it up): arrays, time limits, kills, a driver that dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest

from rlrt.records.folder import PRUNE
from rlrt.sweep.state import job_state
from tests.execution.test_resume import numbers
from tests.records.test_mlflow import client
from tests.sweep.test_driver import SMALL, finish, only, run, start, summaries, trial_states, wait_for

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


def pid_of(cwd, part):
    """The process that runs the job of ``part``, if one does."""
    pids = [json.loads(f.read_text())["pid"] for f in (cwd / "outputs").glob(f"sweeps/*/*{part}*/lease.json")]
    return int(pids[0]) if pids else None


def steps_done(cwd, part):
    for record in (cwd / "outputs").glob(f"sweeps/*/*{part}*/metrics.jsonl"):
        return len(record.read_text().splitlines()) - 1
    return 0


def states(cwd, method):
    """The states of a method's runs by seed, as their folders have them."""
    found = {}
    for spec in (cwd / "outputs").glob(f"sweeps/*/*method={method}*/job.json"):
        seed = next(o for o in json.loads(spec.read_text())["overrides"] if o.startswith("seed=")).removeprefix("seed=")
        found[seed] = job_state(spec.parent).name
    return found


def gone(job):
    """Whether SLURM has ended a job altogether."""
    asked = ["squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-j", str(job)]
    return not subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def log_of(cwd, part):
    """What the job of ``part`` has logged so far."""
    return "".join(f.read_text() for f in (cwd / "outputs").glob(f"sweeps/*/*{part}*/log.txt"))


def test_an_array_and_nothing_twice(tmp_path):
    command = ("-m", "method=rlrt,grpo", "train.steps=5", *SMALL, *SLURM)
    code, output = run(tmp_path, *command)
    assert code == 0, output
    assert "2 finished" in output
    assert submissions(tmp_path) == 1
    code, output = run(tmp_path, *command)
    assert (code, submissions(tmp_path)) == (0, 1), output


def test_submit_and_leave_then_come_back(tmp_path, held):
    hold = held(steps=1)
    command = ("-m", "method=grpo", "train.steps=3", *SMALL, *SLURM, *hold.keys)
    code, output = run(tmp_path, *command, "hydra.launcher.wait=false")
    assert code == 0, output
    assert "rlrt.status" in output
    wait_for(hold.waiting)
    code, output = run(tmp_path, str(only(tmp_path)), module="rlrt.status")
    assert "1 running" in output
    hold.release()
    code, output = run(tmp_path, *command)
    assert code == 0, output
    assert submissions(tmp_path) == 1
    assert {s["state"] for s in summaries(tmp_path).values()} == {"finished"}


def test_the_time_limit_saves_requeues_and_goes_on(tmp_path, held):
    # SLURM looks every 30 s and sends the signal up to 30 s early: 15 to 45 s after the start, when the first life is held,
    # however quick its steps are, and long after it began to listen
    hold, steps = held(steps=3), 12
    driver = start(
        tmp_path, "-m", "method=rlrt", f"train.steps={steps}", "train.save_every=0", *SMALL, *hold.keys, *SLURM[:3],
        "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=15",
    )  # fmt: skip
    wait_for(lambda: "requeued as" in log_of(tmp_path, "rlrt"))
    hold.release()
    code, output = finish(driver, 300)
    assert code == 0, output
    (job,) = only(tmp_path).glob("*/job.json")
    assert "requeued as" in (job.parent / "log.txt").read_text()
    assert json.loads(job.read_text())["retries"] == 0
    whole = tmp_path / "whole"
    run(tmp_path, "method=rlrt", f"train.steps={steps}", *SMALL, *UNPROBED, f"hydra.run.dir={whole}")
    assert numbers(job.parent) == numbers(whole)


def test_a_killed_step_is_noticed_and_started_again(tmp_path, held):
    hold = held(steps=7)
    driver = start(
        tmp_path, "-m", "method=grpo", "seed=0,1", "train.steps=12", "train.save_every=5", *SMALL, *SLURM, *hold.keys
    )
    wait_for(lambda: pid_of(tmp_path, "seed=0") in hold.waiting())
    os.kill(pid_of(tmp_path, "seed=0"), signal.SIGKILL)  # no signal that could be caught, no accounting
    hold.release()
    code, output = finish(driver, 200)
    assert code == 0, output
    assert "2 finished" in output
    (spec,) = only(tmp_path).glob("*seed=0*/job.json")
    assert json.loads(spec.read_text())["retries"] == 1


def test_a_race_has_no_barrier_and_survives_its_driver(tmp_path, held):
    """The arm's first run is held while the baseline goes on to its next seed; the driver dies; the next one ends it."""
    hold = held(steps=1)
    typed = [key for key in hold.keys if "engine.free" not in key]
    (free,) = (key.partition("=")[2] for key in hold.keys if "engine.free" in key)
    grids = f"[{{method:grpo,+engine.free:100000}},{{method:rlrt,+engine.free:{free}}}]"
    command = (
        "-m", "hydra/sweeper=race", f"hydra.sweeper.grids={grids}", "hydra.sweeper.max_seeds=2", "hydra.sweeper.n_jobs=2",
        "train.steps=2", *SMALL, *SLURM, *typed,
    )  # fmt: skip
    driver = start(tmp_path, *command)
    wait_for(lambda: hold.waiting() and states(tmp_path, "grpo") == {"0": "finished", "1": "finished"})
    assert states(tmp_path, "rlrt")["0"] == "running"
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    before = submissions(tmp_path)
    second = start(tmp_path, *command)
    hold.release()
    code, output = finish(second, 300)
    assert code == 0, output
    assert "cannot tell after 2 pairs" in output
    assert submissions(tmp_path) - before <= 1, "nothing ran twice"
    assert states(tmp_path, "rlrt") == states(tmp_path, "grpo") == {"0": "finished", "1": "finished"}


def test_a_killed_driver_leaves_the_jobs_and_the_next_one_waits_for_them(tmp_path, held):
    hold = held(steps=2)
    command = ("-m", "method=grpo", "seed=0,1", "train.steps=5", *SMALL, *SLURM, *hold.keys)
    driver = start(tmp_path, *command)
    wait_for(hold.waiting)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    for spec in only(tmp_path).glob("*/job.json"):  # as if it had died before it could note the ids
        spec.write_text(json.dumps(json.loads(spec.read_text()) | {"slurm_id": None}))
    second = start(tmp_path, *command)
    wait_for(lambda: all(slurm_id(tmp_path, f"seed={n}") for n in (0, 1)))  # it has found them, and they still run
    hold.release()
    code, output = finish(second, 200)
    assert code == 0, output
    assert submissions(tmp_path) == 1
    assert all(s["step"] == 5 for s in summaries(tmp_path).values())


def test_cancel(tmp_path):
    run(tmp_path, "-m", "method=grpo", "train.steps=4000", *SMALL, *SLURM, "hydra.launcher.wait=false")
    wait_for(lambda: steps_done(tmp_path, "grpo") > 2)
    code, _ = run(tmp_path, str(only(tmp_path)), module="rlrt.cancel")
    assert code == 0
    wait_for(lambda: gone(slurm_id(tmp_path, "grpo")))


UNPROBED = ("teacher.probe_prompts=0",)
"""As the held runs, which count the weights that they take."""
PREEMPTED = ("method=rlrt", "seed=5", "train.steps=12", *SMALL)
"""A run to be held in its eighth step and disturbed in several ways."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    code, output = run(folder, *PREEMPTED, *UNPROBED, "train.save_every=0", f"hydra.run.dir={folder}/run")
    assert code == 0, output
    return numbers(folder / "run")


@pytest.mark.parametrize("number", ["USR2", "TERM"])
def test_a_signal_saves_requeues_and_goes_on(tmp_path, undisturbed, number, held):
    """``scancel --signal``, as SLURM sends it before a preemption with some grace; nothing else was saved before."""
    store = f"sqlite:///{tmp_path}/store.db"
    hold = held(steps=7)
    driver = start(tmp_path, "-m", *PREEMPTED, "train.save_every=0", f"tracking.uri={store}", *SLURM, *hold.keys)
    wait_for(hold.waiting)
    subprocess.run(["scancel", f"--signal={number}", str(slurm_id(tmp_path, "rlrt"))], check=True)
    wait_for(lambda: "requeued as" in log_of(tmp_path, "rlrt"))
    hold.release()
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
    assert sorted(m.step for m in history) == list(range(1, 13))
    assert child.data.tags["rlrt.state"] == "finished"


def test_a_job_of_higher_priority_takes_the_node_and_gives_it_back(tmp_path, undisturbed, held):
    """Plain preemption: SIGTERM, SIGKILL a few seconds later, and SLURM itself queues the job again."""
    hold = held(steps=7)
    driver = start(tmp_path, "-m", *PREEMPTED, "train.save_every=5", *SLURM, *hold.keys)
    wait_for(hold.waiting)
    subprocess.run(
        ["srun", "-p", "urgent", "--exclusive", "-t1", "sleep", "3"], check=True, capture_output=True, timeout=90
    )
    hold.release()
    code, output = finish(driver, 200)
    assert code == 0, output
    (job,) = only(tmp_path).glob("*/job.json")
    assert (job.parent / "log.txt").read_text().count("Going on from") >= 1
    assert submissions(tmp_path) == 1
    assert numbers(job.parent) == undisturbed


def test_a_job_that_was_cancelled_is_left_alone_until_the_command_comes_again(tmp_path, held):
    hold = held(steps=2)
    command = ("-m", "method=grpo", "seed=0,1", "train.steps=5", *SMALL, *SLURM, *hold.keys)
    driver = start(tmp_path, *command)
    wait_for(lambda: pid_of(tmp_path, "seed=0") in hold.waiting())
    subprocess.run(["scancel", str(slurm_id(tmp_path, "seed=0"))], check=True)
    wait_for(lambda: gone(slurm_id(tmp_path, "seed=0")))
    hold.release()
    code, output = finish(driver, 200)
    assert code == 1, output
    assert "it was cancelled; the same command resumes it" in output
    assert submissions(tmp_path) == 1
    code, output = run(tmp_path, *command, timeout=200)
    assert code == 0, output
    assert "2 finished" in output


def test_a_search_runs_and_prunes_on_slurm(tmp_path, held):
    """A learning rate that learns and one that destroys: the second is pruned while it runs."""
    hold = held(steps=5, evaluations=2)  # both wait in step 6, once they have reported step 5
    driver = start(
        tmp_path, "-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "train.lr=1e-3,9.0",
        "method=grpo", "train.steps=10", "train.prompts_per_step=4", "train.eval_every=5", "eval.prompts=32", "tracking=none",
        "hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.lower=0.1", *SLURM,
        "hydra.sweeper.n_jobs=2", *hold.keys,
    )  # fmt: skip
    wait_for(lambda: list((tmp_path / "outputs").glob(f"sweeps/*/*/{PRUNE}")))
    hold.release()
    code, output = finish(driver, 200)
    assert code == 0, output
    assert sorted(trial_states(only(tmp_path))) == ["COMPLETE", "PRUNED"]
    best = json.loads((only(tmp_path) / "best.json").read_text())["best"]
    assert best[0]["overrides"] == ["train.lr=0.001"]
    pruned = [s for s in summaries(tmp_path).values() if s["state"] == "pruned"]
    assert [s["step"] for s in pruned] == [6]


def test_what_sbatch_refuses_is_one_sentence(tmp_path):
    code, output = run(tmp_path, "-m", "method=grpo", *SMALL, *SLURM, "hydra.launcher.partition=nothing")
    assert code == 2
    assert "error: hydra/launcher=slurm: sbatch refused the jobs: " in output
    assert "invalid partition" in output
    assert "Traceback" not in output


def test_one_element_of_an_array_is_queued_again_without_its_siblings(tmp_path, held):
    """The last one, whose raw SLURM id is the whole array's."""
    hold = held(steps=2)
    driver = start(
        tmp_path, "-m", "method=grpo", "seed=0,1", "train.steps=5", "train.save_every=0", *SMALL, *SLURM, *hold.keys
    )
    wait_for(lambda: len(hold.waiting()) == 2)
    subprocess.run(["scancel", "--signal=USR2", str(slurm_id(tmp_path, "seed=1"))], check=True)
    wait_for(lambda: "requeued as" in log_of(tmp_path, "seed=1"))
    hold.release()
    code, output = finish(driver, 200)
    assert code == 0, output
    logs = {part: next(only(tmp_path).glob(f"*{part}*/log.txt")).read_text() for part in ("seed=0", "seed=1")}
    assert "requeued as" in logs["seed=1"]
    assert "Going on from" in logs["seed=1"]
    assert "requeued" not in logs["seed=0"]
    assert "Going on from" not in logs["seed=0"]
    assert submissions(tmp_path) == 1
