"""A search against jobs that are only folders: what is proposed, reported, pruned, told, and found again after a kill."""

from __future__ import annotations

import dataclasses
import json
import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from rlrt.errors import UserError
from rlrt.sweep.plan import Job
from rlrt.sweep.search import JOURNAL, Plan, Search, mend, open_study
from rlrt.sweep.state import job_state

METRIC = "eval/avg_at_8"
TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3}
GRID = {"_target_": "optuna.samplers.GridSampler"}
NONE = {"_target_": "optuna.pruners.NopPruner"}
MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 0}


def plan(**more):
    base = {
        "space": {"x": FloatDistribution(0.0, 1.0)},
        "objectives": [METRIC],
        "directions": ["maximize"],
        "n_trials": 4,
        "n_jobs": 2,
        "seeds": [],
        "sampler": TPE,
        "pruner": NONE,
        "seed": 0,
        "identity": "id",
    }
    return Plan(**(base | more))


class World:
    """A sweep whose jobs do what they are told."""

    def __init__(self, folder, the_plan):
        self.folder, self.plan, self.ended, self.jobs = folder, the_plan, {}, {}
        self.search = Search(folder, the_plan, self.job)
        self.take(self.search.begin())

    def job(self, overrides):
        name = ",".join(overrides)
        return Job(self.folder / name, tuple(overrides), {}, {}, name)

    def take(self, jobs):
        for job in jobs:
            job.folder.mkdir(exist_ok=True)
            self.jobs[job.folder] = job
        return jobs

    def more(self, room=9):
        return self.take(self.search.more(room))

    def report(self, job, step, value):
        with (job.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, METRIC: value}) + "\n")

    def end(self, job, state="finished", value=0.5, **more):
        summary = {"state": state, "step": 9, "final": {METRIC: value}} | more
        (job.folder / "summary.json").write_text(json.dumps(summary))
        self.ended[job.folder] = job_state(job.folder)

    def watch(self):
        return self.search.watch(self.ended)

    def trials(self):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(self.folder / JOURNAL)))
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).trials


def test_a_trial_is_proposed_as_soon_as_one_has_ended(tmp_path):
    world = World(tmp_path, plan())
    first, second = world.more()
    assert world.more() == []  # two at a time
    world.end(first, value=0.25)
    assert world.watch()[0] == []
    (third,) = world.more()
    world.end(second, value=0.75)
    world.end(third, value=0.5)
    world.watch()
    (fourth,) = world.more()
    assert len({j.overrides for j in (first, second, third, fourth)}) == 4
    world.end(fourth, value=0.6)
    world.watch()
    assert world.more() == []  # n_trials
    assert [t.value for t in world.trials()] == [0.25, 0.75, 0.5, 0.6]
    closing = world.search.close(world.ended)
    assert closing.code == 0
    assert closing.metrics == {"best/eval_avg_at_8": 0.75}
    best = json.loads((tmp_path / "best.json").read_text())["best"]
    assert [b["trial"] for b in best] == [1]
    assert best[0]["overrides"] == list(second.overrides)
    assert any("best: trial 1: eval/avg_at_8 0.7500" in line for line in closing.lines)


def test_failed_and_nan_trials_are_marked_counted_and_not_fatal(tmp_path):
    world = World(tmp_path, plan(n_trials=3, n_jobs=3))
    a, b, c = world.more()
    world.end(a, state="failed", failure="error", error="RuntimeError: planned")
    world.end(b, value="nan")  # as records hold it
    world.end(c, value=0.5)
    _, lines = world.watch()
    assert [t.state for t in world.trials()] == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    assert "planned" in world.trials()[0].user_attrs["error"]
    assert "is not a number" in world.trials()[1].user_attrs["error"]
    assert sum("failed" in line for line in lines) == 2
    assert world.more() == []
    assert world.search.close(world.ended).code == 0


def test_a_search_where_nothing_came_to_an_end_fails(tmp_path):
    world = World(tmp_path, plan(n_trials=1))
    (job,) = world.more()
    world.end(job, final={})
    world.watch()
    assert "there is no eval/avg_at_8" in world.trials()[0].user_attrs["error"]
    assert world.search.close(world.ended).code == 1


def test_a_trial_over_seeds_is_their_mean_and_pruned_on_their_mean(tmp_path):
    world = World(tmp_path, plan(seeds=[3, 4], n_trials=3, n_jobs=1, pruner=MEDIAN))
    good = world.more()
    assert [j.overrides[-1] for j in good] == ["seed=3", "seed=4"]
    assert good[0].overrides[:-1] == good[1].overrides[:-1]
    for job, value in zip(good, (0.2, 0.6), strict=True):
        world.report(job, 10, value)
        world.report(job, 20, value)
        world.end(job, value=value)
    world.watch()
    bad = world.more()
    world.report(bad[0], 10, 0.9)
    assert world.watch()[0] == []  # the other seed has not reached step 10
    world.report(bad[1], 10, -0.2)
    prune, _ = world.watch()  # mean 0.35 is under 0.4
    assert set(prune) == {j.folder for j in bad}
    world.end(bad[0], state="pruned")
    world.end(bad[1], state="pruned")
    _, lines = world.watch()
    assert "pruned" in lines[0]
    first, second = world.trials()
    assert (first.value, first.intermediate_values) == (
        pytest.approx(0.4),
        {10: pytest.approx(0.4), 20: pytest.approx(0.4)},
    )
    assert (second.state, second.intermediate_values) == (TrialState.PRUNED, {10: pytest.approx(0.35)})


def test_one_failed_seed_ends_the_others_of_its_trial(tmp_path):
    world = World(tmp_path, plan(seeds=[0, 1], n_jobs=1))
    a, b = world.more()
    world.end(a, state="failed", failure="memory", error="MemoryError: x")
    prune, _ = world.watch()
    assert prune == [b.folder]
    world.end(b, state="pruned")
    world.watch()
    assert [t.state for t in world.trials()] == [TrialState.FAIL]


@pytest.mark.parametrize(
    "end",
    [
        {"state": "failed", "failure": "disk", "error": "full"},
        {"state": "failed", "failure": "input"},
        {"state": "interrupted"},
    ],
)
def test_what_is_not_a_trials_fault_costs_no_trial(tmp_path, end):
    """A full disk must not burn all trials, nor a cancelled job its own: the same command goes on with it."""
    world = World(tmp_path, plan(n_jobs=2))
    a, b = world.more()
    world.end(a, **end)
    world.end(b, value=0.5)
    _, lines = world.watch()
    assert any("paused until the same command" in line for line in lines)
    assert world.more() == []  # no new ones into the same trouble
    assert world.search.close(world.ended).code == 1
    assert sorted(t.state.name for t in world.trials()) == ["COMPLETE", "RUNNING"]
    again = World(tmp_path, plan(n_jobs=2))
    assert list(again.jobs) == [a.folder]
    again.end(a, value=0.75)
    again.watch()
    assert len(again.more()) == 2


def test_a_killed_drivers_trials_go_on_and_count_once(tmp_path):
    world = World(tmp_path, plan())
    a, b = world.more()
    world.report(a, 10, 0.5)
    world.watch()
    again = World(tmp_path, plan())  # the first one was killed
    assert {j.folder for j in again.jobs.values()} == {a.folder, b.folder}
    assert again.more() == []
    again.report(a, 20, 0.75)
    again.watch()
    assert again.trials()[0].intermediate_values == {10: 0.5, 20: 0.75}
    again.end(a)
    again.end(b)
    again.watch()
    rest = again.more()
    assert len(rest) == 2
    assert len({j.overrides for j in (a, b, *rest)}) == 4  # a study that goes on proposes no point twice
    for job in rest:
        again.end(job)
    again.watch()
    assert World(tmp_path, plan()).more() == []
    assert [t.state for t in again.trials()] == [TrialState.COMPLETE] * 4
    assert len(World(tmp_path, plan(n_trials=5)).more()) == 1


def test_what_a_kill_leaves_of_a_proposal_is_completed(tmp_path):
    """Killed between two parameters of one trial: the next driver suggests the rest, and no trial is lost."""
    the_plan = plan(space={"x": FloatDistribution(0, 1), "y": CategoricalDistribution(["a", "b"])}, n_trials=1)
    study = open_study(tmp_path, the_plan)
    x = study.ask({"x": FloatDistribution(0, 1)}).params["x"]
    world = World(tmp_path, the_plan)
    (job,) = world.jobs.values()
    assert job.overrides[0] == f"x={x!r}"
    assert job.overrides[1] in ("y=a", "y=b")
    assert world.more() == []


def test_an_exhausted_grid_ends_the_study(tmp_path):
    space = {"x": CategoricalDistribution(["a", "b"]), "y": CategoricalDistribution([1, 2])}
    world = World(tmp_path, plan(space=space, sampler=GRID, n_trials=100, n_jobs=3))
    seen = set()
    for _ in range(4):
        for job in world.more():
            seen.add(job.overrides)
            world.end(job)
        world.watch()
        world = World(tmp_path, world.plan)  # every time by another driver
    assert len(seen) == 4
    assert world.more() == []
    assert world.search.close({}).code == 0


def test_other_settings_are_another_study_and_the_old_one_stays(tmp_path):
    world = World(tmp_path, plan())
    world.more()
    other = World(tmp_path, dataclasses.replace(plan(), identity="other"))
    assert other.jobs == {}
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    assert len(optuna.get_all_study_names(storage)) == 2


def test_several_objectives(tmp_path):
    names = [METRIC, "eval/entropy"]
    world = World(tmp_path, plan(objectives=names, directions=["maximize", "minimize"], n_trials=3, n_jobs=3))
    for job, values in zip(world.more(), ([0.5, 1.0], [0.6, 2.0], [0.4, 3.0]), strict=True):
        world.report(job, 10, 0.1)
        world.end(job, final=dict(zip(names, values, strict=True)))
    world.watch()
    world.search.close(world.ended)
    best = json.loads((tmp_path / "best.json").read_text())["best"]
    assert sorted(b["trial"] for b in best) == [0, 1]  # the third is worse in both


def test_parameters_that_do_not_compose_fail_their_trial_alone(tmp_path):
    class Picky(World):
        def job(self, overrides):
            if float(overrides[0].split("=")[1]) > 0.5:
                raise UserError("x: too large")
            return super().job(overrides)

    world = Picky(tmp_path, plan(n_trials=8, n_jobs=8))
    for job in world.more():
        world.end(job)
    _, lines = world.watch()
    states = [t.state for t in world.trials()]
    assert len(states) == 8
    assert set(states) == {TrialState.COMPLETE, TrialState.FAIL}
    assert any("x: too large" in line for line in lines)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"sampler": {"_target_": "optuna.samplers.TPESampler", "nonsense": 1}},
            "TPESampler cannot be created.*nonsense",
        ),
        ({"sampler": {"_target_": "optuna.samplers.Nothing"}}, "Nothing cannot be created"),
        ({"sampler": {"_target_": "pathlib.Path"}}, "cannot be created|expected a subclass of optuna's BaseSampler"),
        ({"pruner": {"_target_": "optuna.samplers.TPESampler"}}, "expected a subclass of optuna's BasePruner"),
    ],
)
def test_a_sampler_or_pruner_that_cannot_be_made_is_one_sentence(tmp_path, more, says):
    with pytest.raises(UserError, match=says):
        open_study(tmp_path, plan(**more))


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "gp"])
def test_every_shipped_sampler_with_a_search(tmp_path, name):
    from rlrt.config.compose import composer
    from rlrt.sweep.jobs import plain

    with composer() as compose:
        section = plain(compose(["hydra/sweeper=optuna", f"hydra/sweeper/sampler={name}"]).hydra.sweeper.sampler)
    space = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
    world = World(tmp_path, plan(sampler=section, n_trials=12, n_jobs=1, space=space))
    points = []
    for _ in range(12):
        (job,) = world.more()
        x, y = (float(o.split("=")[1]) for o in job.overrides)
        points.append((x, y))
        world.end(job, value=-((x - 0.3) ** 2) - (y - 0.6) ** 2)
        world.watch()
    assert len(set(points)) == 12
    assert not any(math.isnan(x) for x, _ in points)


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_every_shipped_pruner_ends_hopeless_trials(tmp_path, name):
    from rlrt.config.compose import composer
    from rlrt.sweep.jobs import plain
    from rlrt.sweep.settings import pruner_of
    from tests.helpers import settings

    with composer() as compose:
        section = plain(compose(["hydra/sweeper=optuna", f"hydra/sweeper/pruner={name}"]).hydra.sweeper.pruner)
    made = pruner_of(section, settings("train.steps=90", "train.eval_every=10"))
    world = World(tmp_path, plan(pruner=made, n_trials=12, n_jobs=1))
    pruned = 0
    for number in range(12):
        (job,) = world.more()
        asked = []
        for step in range(10, 100, 10):
            world.report(job, step, 0.9 - 0.05 * number)  # every trial is worse than all before it
            asked = world.watch()[0]
            if asked:
                break
        pruned += bool(asked)
        world.end(job, state="pruned" if asked else "finished")
        world.watch()
    assert pruned >= 4
    assert sum(t.state == TrialState.PRUNED for t in world.trials()) == pruned


def test_a_torn_journal_is_mended(tmp_path):
    world = World(tmp_path, plan())
    world.more()
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "wor')
    (tmp_path / "study.journal.lock").symlink_to(journal)
    mend(journal)
    assert journal.read_bytes() == whole
    assert len(World(tmp_path, plan()).jobs) == 2
