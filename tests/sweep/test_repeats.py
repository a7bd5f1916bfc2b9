"""A search whose sampler proposes what was tried before: the trial is told the end of the job that is there."""

from __future__ import annotations

import io
import json
import os
import signal

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

import rlrt.sweep.driver
from rlrt.records.files import write_json
from rlrt.sweep.driver import Driver
from rlrt.sweep.jobs import with_folder
from rlrt.sweep.plan import Job
from rlrt.sweep.search import Search, open_study
from tests.forked import forked
from tests.sweep.fake import FolderLauncher
from tests.sweep.test_driver import only, trial_states
from tests.sweep.test_search import GRID, METRIC, TPE, World, plan

SAMPLERS = {
    "tpe": TPE,
    "random": {"_target_": "optuna.samplers.RandomSampler"},
    "grid": GRID,
    "cmaes": {"_target_": "optuna.samplers.CmaEsSampler"},
}
ONE = {"x": CategoricalDistribution(["a"])}
PLAIN = {"train": {"steps": 1}, "resume": "auto", "tracking": {"uri": None}}


class Unwanted(optuna.pruners.BasePruner):
    """Prunes one trial at its first report, whatever it says."""

    def __init__(self, number):
        self._number = number

    def prune(self, study, trial):
        return trial.number == self._number


@pytest.fixture(autouse=True)
def sleeps(monkeypatch):
    """Looks of a driver, which does not wait between them."""
    made = []
    monkeypatch.setattr(rlrt.sweep.driver.time, "sleep", made.append)
    return made


def job_in(sweep):
    def job(overrides):
        name = ",".join(overrides)
        return Job(sweep / name, tuple(overrides), PLAIN, {}, name)

    return job


def drive(sweep, the_plan, launcher=None):
    """(exit code, what a person read, the launcher)."""
    jobs_at_once = the_plan.n_jobs * max(1, len(the_plan.seeds))
    launcher = launcher or FolderLauncher(jobs_at_once, final=dict.fromkeys(the_plan.objectives, 0.5))
    out = io.StringIO()
    code = Driver(sweep, Search(sweep, the_plan, job_in(sweep)), launcher, 1, {"uri": None}, out).run()
    return code, out.getvalue(), launcher


def twice(tmp_path, **more):
    """A world in which two trials of one job run."""
    world = World(tmp_path, plan(space=ONE, n_trials=2, **more))
    first, second = world.more()
    assert first.folder == second.folder
    return world, first


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_over_few_points_comes_to_its_number_of_trials(tmp_path, sampler, n_jobs):
    space = {"x": IntDistribution(0, 1), "y": IntDistribution(0, 1)}
    code, said, launcher = drive(tmp_path, plan(space=space, sampler=SAMPLERS[sampler], n_trials=9, n_jobs=n_jobs))
    assert code == 0, said
    assert trial_states(tmp_path) == ["COMPLETE"] * (4 if sampler == "grid" else 9)
    assert len(launcher.started) == len(set(launcher.started)) <= 4  # each job once
    again = drive(tmp_path, plan(space=space, sampler=SAMPLERS[sampler], n_trials=12, n_jobs=n_jobs))
    assert again[0] == 0, again[1]
    assert trial_states(tmp_path) == ["COMPLETE"] * (4 if sampler == "grid" else 12)


def test_the_last_trial_may_be_a_repeat_and_is_told_one_look_later(tmp_path, sleeps):
    code, said, launcher = drive(tmp_path, plan(space=ONE, n_trials=6, n_jobs=1))
    assert (code, len(launcher.started)) == (0, 1)
    assert trial_states(tmp_path) == ["COMPLETE"] * 6
    assert said.count("0.5000 (x=a)") == 6
    assert len(sleeps) <= 1 + launcher.ticks + 6


def test_a_repeat_over_several_seeds(tmp_path):
    code, said, launcher = drive(tmp_path, plan(space=ONE, seeds=[3, 4], n_trials=4))
    assert code == 0, said
    assert [f.name for f in launcher.started] == ["x=a,seed=3", "x=a,seed=4"]
    assert trial_states(tmp_path) == ["COMPLETE"] * 4


def test_a_repeat_is_once_on_the_front_of_several_objectives(tmp_path):
    two = {"objectives": [METRIC, "eval/entropy"], "directions": ["maximize", "minimize"]}
    code, said, _ = drive(tmp_path, plan(space=ONE, n_trials=3, **two))
    assert code == 0, said
    assert trial_states(tmp_path) == ["COMPLETE"] * 3
    assert [b["trial"] for b in json.loads((tmp_path / "best.json").read_text())["best"]] == [0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_driver_killed_while_a_repeat_runs_in_the_study(tmp_path, sampler):
    space = {"x": IntDistribution(0, 0), "y": IntDistribution(0, 0)} if sampler == "cmaes" else ONE
    more = {"space": space, "sampler": SAMPLERS[sampler], "n_jobs": 1}
    assert drive(tmp_path, plan(n_trials=1, **more))[0] == 0
    study = open_study(tmp_path, plan(**more))
    study.ask(space)
    assert trial_states(tmp_path) == ["COMPLETE", "RUNNING"]
    code, said, launcher = drive(tmp_path, plan(n_trials=2, **more))
    assert code == 0, said
    assert (trial_states(tmp_path), launcher.started) == (["COMPLETE"] * 2, [])


def test_a_driver_killed_while_a_trial_and_its_repeat_run(tmp_path):
    world, job = twice(tmp_path)
    again = World(tmp_path, world.plan)
    assert list(again.jobs) == [job.folder]
    again.end(job, value=0.25)
    again.watch()
    assert [t.value for t in again.trials()] == [0.25, 0.25]
    assert not again.search.unfinished()


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_driver_killed_before_the_sampler_was_asked(tmp_path, sampler):
    the_plan = plan(space=ONE, n_trials=1, sampler=SAMPLERS[sampler])
    study = open_study(tmp_path, the_plan)
    study._storage.create_new_trial(study._study_id)
    code, said, _ = drive(tmp_path, the_plan)
    assert code == 0, said
    assert trial_states(tmp_path) == ["COMPLETE"]


@pytest.mark.parametrize("life", [1, 2])
def test_a_repeat_never_prunes_the_job_of_a_trial_that_runs(tmp_path, life):
    world, job = twice(tmp_path, pruner={"_target_": f"{__name__}.Unwanted", "number": 1})
    if life == 2:
        world = World(tmp_path, world.plan)
    world.report(job, 10, 0.1)
    assert world.watch()[0] == []
    world.report(job, 20, 0.2)
    assert world.watch()[0] == []
    world.end(job, value=0.25)
    world.watch()
    assert [(t.state, t.value) for t in world.trials()] == [(TrialState.COMPLETE, 0.25)] * 2


def test_a_repeat_of_a_pruned_trial_is_pruned(tmp_path):
    world, job = twice(tmp_path, pruner={"_target_": f"{__name__}.Unwanted", "number": 0})
    world.report(job, 10, 0.1)
    assert world.watch()[0] == [job.folder]
    world.end(job, state="pruned")
    world.watch()
    assert [t.state for t in world.trials()] == [TrialState.PRUNED] * 2
    later = World(tmp_path, plan(space=ONE, n_trials=3, pruner=world.plan.pruner))
    later.more()
    later.end(job, state="pruned")
    later.watch()
    assert [t.state for t in later.trials()] == [TrialState.PRUNED] * 3
    assert later.search.close(later.ended).code == 1  # nothing came to an end


def test_a_repeat_of_a_failed_trial_fails_and_the_search_goes_on(tmp_path):
    class Failing(FolderLauncher):
        def process_states(self):
            found = super().process_states()
            for folder in [f for f, word in found.items() if not word and f.name == "x=0"]:
                write_json(folder / "summary.json", {"state": "failed", "failure": "config", "error": "planned"})
            return found

    launcher = Failing(2, final={METRIC: 0.5})
    code, said, _ = drive(tmp_path, plan(space={"x": IntDistribution(0, 1)}, n_trials=8), launcher)
    assert code == 0, said
    assert set(trial_states(tmp_path)) == {"COMPLETE", "FAIL"}
    assert len(trial_states(tmp_path)) == 8
    assert len(launcher.started) == 2


def test_a_search_that_ends_short_says_so_and_fails(tmp_path):
    class Cancelled(FolderLauncher):
        def process_states(self):
            found = super().process_states()
            for folder in [f for f, word in found.items() if not word]:
                write_json(folder / "summary.json", {"state": "failed", "failure": "disk", "error": "full"})
            return found

    code, said, _ = drive(tmp_path, plan(space=ONE, n_trials=3), Cancelled(2))
    assert code == 1
    assert "only 0 of 3 trials have ended; the same command continues the search" in said
    assert trial_states(tmp_path) == ["RUNNING"] * 2
    code, said, _ = drive(tmp_path, plan(space=ONE, n_trials=3))
    assert code == 0, said
    assert trial_states(tmp_path) == ["COMPLETE"] * 3


def test_a_driver_that_leaves_while_jobs_are_under_way_has_not_failed(tmp_path):
    world = World(tmp_path, plan(n_trials=2))
    first, _ = world.more()
    world.end(first)
    world.watch()
    closing = world.search.close(world.ended)
    assert closing.code == 0
    assert not any("have ended" in line for line in closing.lines)


def test_ctrl_c_is_heard_between_repeats(tmp_path):
    class Told(FolderLauncher):
        def submit(self, folders, sweep, name):
            os.kill(os.getpid(), signal.SIGINT)
            return super().submit(folders, sweep, name)

    code, said, _ = drive(tmp_path, plan(space=ONE, n_trials=50, n_jobs=1), Told(1, final={METRIC: 0.5}))
    assert code == 130, said
    assert len(trial_states(tmp_path)) == 1


def test_one_identity_has_one_folder_whatever_it_is_called(tmp_path):
    job, known = Job(tmp_path, (), PLAIN, {}, "1" * 12), {}
    first = with_folder(tmp_path, job, ["threads=1"], known)
    assert with_folder(tmp_path, job, ["threads=2"], known).folder == first.folder == tmp_path / f"threads=1-{'1' * 12}"


def test_a_real_search_over_two_jobs_under_four_names(tmp_path):
    """``threads`` is no part of a run's identity."""
    search = (
        "-m", "method=grpo", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=2", "method.scale_by_std=true,false", "threads=1,2",
        "train.steps=1", "train.prompts_per_step=2", "train.rollouts_per_prompt=4", "eval.prompts=4",
        "eval.samples_per_prompt=2", "engine.max_new_tokens=16", "tracking=none",
    )  # fmt: skip
    for trials in (6, 8):
        done = forked("run", (*search, f"hydra.sweeper.n_trials={trials}"), tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert trial_states(only(tmp_path)) == ["COMPLETE"] * trials
        assert len(list(only(tmp_path).glob("*/summary.json"))) <= 2
