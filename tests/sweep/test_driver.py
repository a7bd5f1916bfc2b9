"""Real processes through submitit's local executor: kills, failures, a second driver; nothing finished is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.execution.test_resume import numbers
from tests.forked import forked

SMALL = ("train.prompts_per_step=2", "eval.prompts=4", "tracking=none", "train.eval_every=0")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("HYDRA")} | {
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),  # tests.held
}


def start(cwd, *arguments, module="rlrt.run", **more):
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=ENVIRONMENT | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=300):
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"not over after {timeout} s:\n{output}") from None
    return process.returncode, output


def run(cwd, *arguments, module="rlrt.run", timeout=300, **more):
    return finish(start(cwd, *arguments, module=module, **more), timeout)


def quick(cwd, *arguments, module="rlrt.run", **more):
    """The same in forks: where neither submitit nor a process that begins from nothing is what a test is about."""
    done = forked(module.removeprefix("rlrt."), arguments, cwd, **more)
    return done.returncode, done.stdout + done.stderr


def wait_for(what, seconds=240):
    for _ in range(seconds * 10):
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def only(cwd) -> Path:
    (sweep,) = (cwd / "outputs" / "sweeps").iterdir()
    return sweep


def summaries(cwd):
    return {f.parent.name.split("-")[0]: json.loads(f.read_text()) for f in only(cwd).glob("*/summary.json")}


def running_pid(cwd, steps):
    """The pid of a worker that has done some steps."""
    for record in (cwd / "outputs").glob("sweeps/*/*/metrics.jsonl"):
        if len(record.read_text().splitlines()) > steps:
            return int(json.loads((record.parent / "lease.json").read_text())["pid"])
    return None


def test_killed_jobs_and_drivers_cost_nothing(tmp_path, held):
    """kill -9 of a job: its driver starts it again. kill -9 of the driver: the same command takes over."""
    hold = held(steps=7)
    long = ("-m", "method=grpo", "seed=0,1", "train.steps=16", "train.save_every=5", *SMALL, *hold.keys)
    driver = start(tmp_path, *long)
    os.kill(wait_for(hold.waiting)[0], signal.SIGKILL)
    second = run(tmp_path, *long)
    assert second[0] == 2
    assert "another driver" in second[1]
    wait_for(lambda: len(hold.waiting()) == 3)  # the other seed, and the killed one's second life
    assert list((tmp_path / "outputs").rglob("checkpoints/step_5"))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    hold.release()
    code, output = run(tmp_path, *long)
    driver.communicate()  # its pipe, which the jobs that outlived it had too
    assert code == 0, output
    assert "2 finished" in output
    states = summaries(tmp_path)
    assert {s["state"] for s in states.values()} == {"finished"}
    assert all(s["step"] == 16 for s in states.values())
    whole = tmp_path / "whole"
    code, output = quick(tmp_path, "method=grpo", "seed=0", "train.steps=16", *SMALL, f"hydra.run.dir={whole}")
    assert code == 0, output
    (job,) = only(tmp_path).glob("*seed=0*")
    assert numbers(job) == numbers(whole)  # to the bit, as if nothing had happened
    before = {f: f.stat().st_mtime_ns for f in only(tmp_path).glob("*/metrics.jsonl")}
    code, output = quick(tmp_path, *long)
    assert code == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before
    code, output = run(tmp_path, str(only(tmp_path)), module="rlrt.status")
    assert code == 0
    assert "2 finished" in output


@pytest.mark.long
def test_a_job_and_its_driver_killed_at_once(tmp_path, held):
    hold = held(steps=7)
    arguments = ("-m", "method=rlrt", "seed=0,1", "train.steps=12", "train.save_every=5", *SMALL, *hold.keys)
    driver = start(tmp_path, *arguments)
    worker = wait_for(hold.waiting)[0]
    os.kill(driver.pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    driver.wait()
    hold.release()
    code, output = run(tmp_path, *arguments)
    driver.communicate()  # its pipe, which the jobs that outlived it had too
    assert code == 0, output
    assert {(s["state"], s["step"]) for s in summaries(tmp_path).values()} == {("finished", 12)}
    retries = [json.loads(f.read_text())["retries"] for f in only(tmp_path).glob("*/job.json")]
    assert sum(retries) >= 1


def test_a_job_that_dies_before_its_first_word_is_not_started_for_ever(tmp_path):
    arguments = ("-m", "method=grpo", "seed=0", "train.steps=2", *SMALL, "hydra.sweeper.max_retries=1")
    code, output = run(tmp_path, *arguments, PYTHONPATH=f"{dying(tmp_path)}{os.pathsep}{ROOT}")
    assert code == 1, output
    assert "ended without an error message" in output
    assert "tried 2 times; a larger hydra.sweeper.max_retries" in output


def dying(tmp_path):
    """A folder whose sitecustomize ends submitit's processes at once, as a broken environment on a node would."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, sys\nif 'submitit.core._submit' in ' '.join(sys.orig_argv): os._exit(9)\n"
    )
    return folder


def test_a_whole_sweep_anew(tmp_path):
    arguments = ("-m", "method=grpo", "seed=0,1", "train.steps=2", *SMALL)
    assert quick(tmp_path, *arguments)[0] == 0
    code, output = quick(tmp_path, *arguments, "resume=never")
    assert code == 0, output
    assert len(list(only(tmp_path).glob("*.old-1/metrics.jsonl"))) == 2
    assert output.count("the earlier run was moved to") == 2
    assert json.loads(next(only(tmp_path).glob("seed=0*/job.json")).read_text())["plain"]["resume"] == "auto"


def test_must_resume_refuses_before_anything_starts(tmp_path):
    code, output = quick(tmp_path, "-m", "method=grpo", "seed=0,1", "train.steps=2", *SMALL, "resume=must")
    assert code == 2
    assert "error: resume=must: expected a good checkpoint" in output
    assert not list((tmp_path / "outputs").rglob("summary.json"))


SEARCH = (
    "-m", "hydra/sweeper=optuna", "method=rlrt", "method.lambda_init=interval(0,1)", "train.steps=12", "train.eval_every=3",
    "train.prompts_per_step=2", "eval.prompts=16", "tracking=none", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2",
)  # fmt: skip


def trial_states(sweep):
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(sweep / "study.journal")))
    (name,) = optuna.get_all_study_names(storage)
    return [t.state.name for t in optuna.load_study(study_name=name, storage=storage).trials]


@pytest.mark.long
def test_a_search_survives_its_driver(tmp_path, held):
    hold = held(steps=4, evaluations=2)
    search = (*SEARCH, *hold.keys)
    driver = start(tmp_path, *search)
    wait_for(hold.waiting)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    hold.release()
    code, output = run(tmp_path, *search)
    driver.communicate()  # its pipe, which the jobs that outlived it had too
    assert code == 0, output
    assert trial_states(only(tmp_path)) == ["COMPLETE"] * 4
    assert len(list(only(tmp_path).glob("*/job.json"))) == 4  # each trial once
    assert json.loads((only(tmp_path) / "best.json").read_text())["best"][0]["params"]
    before = {f: f.stat().st_mtime_ns for f in only(tmp_path).glob("*/metrics.jsonl")}
    code, output = quick(tmp_path, *search)
    assert code == 0, output
    assert {f: f.stat().st_mtime_ns for f in before} == before


@pytest.mark.parametrize(
    ("space", "key"),
    [
        ("hydra.sweeper.params={nope.x: {type: float, low: 0, high: 1}}", "nope.x"),
        ("method.lamda_init=interval(0,1)", "method.lamda_init"),
        ("hydra.sweeper.params={train.stepz: {type: int, low: 1, high: 3}}", "train.stepz"),
        ("model.loraa=16,32", "model.loraa"),
    ],
)
def test_a_search_over_a_key_that_is_not_there_is_refused_before_a_trial(tmp_path, space, key):
    code, output = quick(tmp_path, "-m", "hydra/sweeper=optuna", "method=rlrt", *SMALL, space)
    assert code == 2, output
    assert f"{key}: there is no such key." in output
    assert not list(tmp_path.rglob("study.journal"))


def test_a_search_over_methods_may_vary_a_key_that_only_one_has(tmp_path):
    more = ("train.steps=1", "hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=random", "train.eval_every=0")
    code, output = quick(
        tmp_path, "-m", "hydra/sweeper=optuna", *SMALL, *more, "method=rlrt,grpo", "method.lambda_init=interval(0,1)"
    )
    assert "error:" not in output, output
    assert len(trial_states(only(tmp_path))) == 2
    assert code in (0, 1)


def test_a_search_prunes_jobs_while_they_run(tmp_path):
    """A threshold that every trial is under at once: pruned at the first report, long before the last step."""
    pruner = ("hydra.sweeper.pruner._target_=optuna.pruners.ThresholdPruner", "+hydra.sweeper.pruner.lower=2.0")
    code, output = quick(
        tmp_path,
        *SEARCH,
        "train.steps=4000",
        "train.save_every=0",
        *pruner,
        "trial.seeds=[0,1]",
        "hydra.sweeper.n_trials=2",
    )
    assert code == 1, output  # nothing came to an end: no best trial
    assert trial_states(only(tmp_path)) == ["PRUNED", "PRUNED"]
    states = summaries(tmp_path)
    assert {s["state"] for s in states.values()} == {"pruned"}
    assert all(s.get("step", 0) < 4000 for s in states.values())


def test_failures_are_named_and_retried_only_where_it_may_help(tmp_path):
    (tmp_path / "flaky.py").write_text(FLAKY)
    arguments = ("-m", "method=grpo", "seed=0,1", "train.steps=2", *SMALL, "method.credit=flaky.Flaky")
    code, output = quick(tmp_path, *arguments, "hydra.sweeper.max_retries=1")
    assert code == 1, output
    states = summaries(tmp_path)
    failed, fine = (next(s for name, s in states.items() if f"seed={n}" in name) for n in (1, 0))
    assert fine["state"] == "finished"
    assert (failed["state"], failed["failure"]) == ("failed", "error")
    assert "RuntimeError: planned" in output
    assert "log.txt" in output
    (job,) = only(tmp_path).glob("*seed=1*")
    assert json.loads((job / "job.json").read_text())["retries"] == 1
    assert (job / "log.txt").read_text().count("Traceback") == 2  # the first try and the one retry


FLAKY = '''
from dataclasses import dataclass
from rlrt.methods.uniform import UniformCredit


@dataclass
class Flaky(UniformCredit):
    """Fails for the rollouts of one seed."""

    def __call__(self, advantage_B, signals):
        if self.fails():
            raise RuntimeError("planned")
        return super().__call__(advantage_B, signals)

    @staticmethod
    def fails():
        import inspect
        for frame in inspect.stack():
            settings = frame.frame.f_locals.get("settings")
            if settings is not None:
                return settings.seed == 1
        return False
'''


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    arguments = ("-m", "method=grpo", "seed=0", "train.steps=4000", "train.save_every=0", *SMALL)
    driver = start(tmp_path, *arguments)
    wait_for(lambda: running_pid(tmp_path, 3))
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    code, output = finish(driver)
    assert code == 130, output
    (state,) = summaries(tmp_path).values()
    assert state["state"] == "interrupted"
    assert 0 < state["step"] < 4000
    (job,) = only(tmp_path).glob("*seed=0*")
    assert (job / "checkpoints" / f"step_{state['step']}").is_dir()
    assert "rlrt.cancel" in output


def test_cancel_stops_driver_and_jobs(tmp_path):
    driver = start(tmp_path, "-m", "method=grpo", "seed=0,1", "train.steps=4000", *SMALL)
    wait_for(lambda: running_pid(tmp_path, 3))
    code, output = run(tmp_path, str(only(tmp_path)), module="rlrt.cancel")
    assert code == 0
    assert "were told to save" in output
    assert finish(driver)[0] == 130
    assert "running" not in {s["state"] for s in summaries(tmp_path).values()}


@pytest.mark.parametrize(
    "bad", ["train.lr=-1,1e-3", "hydra.launcher.n_jobs=0", "hydra/launcher=nothing", "hydra/launcher=slurm"]
)
def test_nothing_starts_where_something_is_wrong(tmp_path, bad):
    code, output = quick(
        tmp_path, "-m", "seed=0,1", *SMALL, bad, PATH="/nowhere"
    )  # no sbatch, whatever this machine has
    assert code in (1, 2), output
    assert output.count("error: ") == 1
    assert "Traceback" not in output
    assert not list((tmp_path / "outputs").rglob("summary.json"))


def test_dry_run_prints_the_script(tmp_path):
    code, output = quick(
        tmp_path, "-m", "seed=0,1,2", *SMALL, "hydra/launcher=slurm", "hydra.launcher.dry_run=true",
        "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1", "hydra.launcher.mem_gb=8",
        "hydra.launcher.timeout_min=30", "hydra.launcher.array_parallelism=2", "hydra.launcher.setup=['module load x']",
        "+hydra.launcher.additional_parameters.nice=5",
    )  # fmt: skip
    assert code == 0, output
    for line in (
        "--partition=gpu",
        "--gpus-per-node=1",
        "--mem=8192M",
        "--time=30",
        "--array=0-2%2",
        "module load x",
        "--nice=5",
    ):
        assert line in output, line


@pytest.mark.long
def test_ctrl_c_while_jobs_start_is_heard(tmp_path):
    """To the driver alone, before its workers have done anything: it goes on telling them."""
    driver = start(tmp_path, "-m", "method=grpo", "seed=0,1", "train.steps=4000", *SMALL)
    wait_for(lambda: list((tmp_path / "outputs").glob("sweeps/*/*/lease.json")))
    os.kill(driver.pid, signal.SIGINT)
    code, output = finish(driver)
    assert code == 130, output
    assert {s["state"] for s in summaries(tmp_path).values()} <= {"interrupted"}
