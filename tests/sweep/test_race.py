"""A race against jobs that are only folders: what is proposed, compared, decided and stopped, and found again after a kill."""

from __future__ import annotations

import io
import json
import random
import re

import numpy
import pytest

import rlrt.sweep.driver
from rlrt.errors import UserError
from rlrt.records.files import read_json
from rlrt.records.folder import RunFolder
from rlrt.reporting.jobs import labels_of
from rlrt.reporting.page import read
from rlrt.reporting.races import RACE
from rlrt.statistics import narrowed, verdict
from rlrt.sweep.command import configs
from rlrt.sweep.driver import Driver
from rlrt.sweep.plan import Job
from rlrt.sweep.race import Arm, Race
from rlrt.sweep.settings import RaceKeys
from rlrt.sweep.state import job_state
from tests.sweep.fake import FolderLauncher, killed_after
from tests.sweep.test_driver import SMALL, quick

METRIC = "eval/avg_at_8"
PLAIN = {"train": {"steps": 1}, "resume": "auto", "tracking": {"uri": None}}
TRUE = {"base": 0.0, "good": 0.06, "bad": -0.06, "same": 0.0}
SPREAD = {"base": 0.003, "good": 0.02, "bad": 0.02, "same": 0.003}


@pytest.fixture(autouse=True)
def sleeps(monkeypatch):
    """A driver that does not wait between its looks."""
    made = []
    monkeypatch.setattr(rlrt.sweep.driver.time, "sleep", made.append)
    return made


def keys(**more):
    base = {
        "params": {}, "grids": [], "zip": [], "baseline": None, "metric": None, "alpha": 0.05, "margin": 0.02, "scale": 1.5,
        "first_seed": 0, "max_seeds": 30, "n_jobs": 6, "max_jobs": 1000, "max_retries": 0,
    }  # fmt: skip
    return RaceKeys(**(base | more))


def value(name, seed):
    """A run's score, of its arm and its seed alone."""
    return 0.5 + TRUE[name] + SPREAD[name] * float(numpy.random.default_rng([sum(map(ord, name)), seed]).normal())


def race(folder, names=("base", "good", "bad", "same"), **more):
    def make(overrides, seed):
        job = f"{overrides[0]},seed={seed}"
        return Job(folder / job, (*overrides, f"seed={seed}"), PLAIN, {}, job)

    return Race(folder, keys(**more), METRIC, [Arm(name, (f"arm={name}",)) for name in names], make)


def scored(folder):
    name, seed = re.fullmatch(r"arm=(\w+),seed=(\d+)", folder.name).groups()
    return {METRIC: value(name, int(seed))}


def drive(folder, source, launcher=None):
    out = io.StringIO()
    launcher = launcher or FolderLauncher(6, final=scored)
    code = Driver(folder, source, launcher, 0, {"uri": None}, out).run()
    return code, out.getvalue(), launcher


def said(folder):
    return {arm["name"]: (arm["said"], len(arm["differences"])) for arm in read_json(folder / RACE)["arms"]}


def by_hand(name, arms=3, most=30):
    """The verdict and its pair, from the definition: the first seeds in their order, one after the other."""
    interval, gaps = (-numpy.inf, numpy.inf), []
    for seed in range(most):
        gaps.append(value(name, seed) - value("base", seed))
        interval = narrowed(interval, gaps, 0.05 / arms, 1.5)
        if verdict(*interval, 0.02) != "open":
            return verdict(*interval, 0.02), seed + 1
    return "cannot tell", most


def test_each_arm_races_to_its_own_verdict_and_stops_there(tmp_path):
    code, text, launcher = drive(tmp_path, race(tmp_path))
    assert code == 0
    assert said(tmp_path) == {name: by_hand(name) for name in ("good", "bad", "same")}
    assert {arm: verdict for arm, (verdict, _) in said(tmp_path).items()} == {
        "good": "better", "bad": "worse", "same": "equivalent",
    }  # fmt: skip
    started = {name: sum(f"arm={name}," in f.name for f in launcher.started) for name in TRUE}
    for name, (_, pairs) in said(tmp_path).items():
        assert pairs <= started[name] <= pairs + 6  # what was under way when the verdict came
    assert started["base"] >= max(pairs for _, pairs in said(tmp_path).values())
    assert sum(started.values()) < 120
    assert "good: better after" in text


def test_verdicts_do_not_depend_on_which_run_ends_first(tmp_path):
    for number in range(3):
        folder, chance = tmp_path / str(number), random.Random(number)
        folder.mkdir()
        running = race(folder)
        waiting, ended = running.begin(), {}
        while running.unfinished():
            new = running.more(9)
            waiting += new
            for job in new:
                job.folder.mkdir()
            for job in chance.sample(waiting, min(2, len(waiting))):
                waiting.remove(job)
                summary = {"state": "finished", "step": 1, "final": scored(job.folder)}
                (job.folder / "summary.json").write_text(json.dumps(summary))
                ended[job.folder] = job_state(job.folder)
            running.watch(ended)
        assert said(folder) == {name: by_hand(name) for name in ("good", "bad", "same")}


@pytest.mark.parametrize("looks", [3, 5, 9])
def test_a_killed_driver_is_replaced_by_one_that_says_the_same_and_runs_nothing_again(tmp_path, monkeypatch, looks):
    drive(whole := tmp_path / "whole", race(make_folder(whole)))
    folder = make_folder(tmp_path / "killed")
    with killed_after(looks, monkeypatch):
        drive(folder, race(folder))
    done = {f.parent for f in folder.glob("*/summary.json") if read_json(f).get("state") == "finished"}
    assert done
    code, _, launcher = drive(folder, race(folder))
    assert code == 0
    assert done.isdisjoint(launcher.started)
    assert said(folder) == said(whole)
    before = {f.name for f in folder.glob("arm=*")}
    code, _, launcher = drive(folder, race(folder))
    assert (code, launcher.started, said(folder)) == (0, [], said(whole))
    assert {f.name for f in folder.glob("arm=*")} == before


def make_folder(path):
    path.mkdir()
    return path


def finish(job):
    job.folder.mkdir(exist_ok=True)
    (job.folder / "job.json").write_text("{}")
    (job.folder / "summary.json").write_text(json.dumps({"state": "finished", "step": 1, "final": scored(job.folder)}))
    return job_state(job.folder)


def test_runs_beyond_a_verdict_are_ended_and_stay_ended_under_the_next_driver(tmp_path):
    running, jobs, ended = race(tmp_path, n_jobs=40), [], {}
    jobs = running.more(40)
    name, pairs = "good", by_hand("good")[1]
    assert {job.overrides[-1] for job in jobs} == {
        f"seed={seed}" for seed in range(10)
    }  # ten seeds of four arms at once
    for job in jobs:
        if any(job.folder.name == f"arm={arm},seed={seed}" for arm in ("base", name) for seed in range(pairs)):
            ended[job.folder] = finish(job)
    over, _ = running.watch(ended)
    assert sorted(folder.name for folder in over) == [f"arm={name},seed={seed}" for seed in range(pairs, 10)]
    for folder in over:
        folder.mkdir()
        (folder / "job.json").write_text("{}")
        RunFolder(folder).ask_to_prune()
        RunFolder(folder).set_state("pruned", step=0)
    code, _, launcher = drive(tmp_path, race(tmp_path))
    assert (code, said(tmp_path)) == (0, {arm: by_hand(arm) for arm in ("good", "bad", "same")})
    assert not any(f"arm={name}," in folder.name for folder in launcher.started)
    assert {job_state(folder).name for folder in over} == {"pruned"}


def test_an_arm_that_cannot_be_told_ends_at_max_seeds_and_more_seeds_go_on(tmp_path):
    code, text, _ = drive(tmp_path, race(tmp_path, ("base", "same"), margin=0.0001, max_seeds=6))
    assert code == 0
    assert said(tmp_path) == {"same": ("cannot tell", 6)}
    assert "hydra.sweeper.max_seeds allows no more pairs" in text
    assert "12 runs, of at most 12" in text
    _, _, launcher = drive(tmp_path, race(tmp_path, ("base", "same"), margin=0.0001, max_seeds=8))
    assert said(tmp_path) == {"same": ("cannot tell", 8)}
    assert len(launcher.started) == 4


def test_equal_runs_are_never_told_apart_nor_called_equivalent(tmp_path):
    code, text, _ = drive(
        tmp_path, race(tmp_path, ("base", "good"), max_seeds=7), FolderLauncher(9, final={METRIC: 0.5})
    )
    assert (code, said(tmp_path)) == (0, {"good": ("cannot tell", 7)})
    assert "all 7 differences are equal" in text


def test_other_rules_in_the_same_folder_are_refused(tmp_path):
    drive(tmp_path, race(tmp_path, ("base", "good"), max_seeds=3))
    for more, what in (
        ({"margin": 0.05}, "margin 0.02, and this one has 0.05"),
        ({"scale": 1.0}, "scale"),
        ({"alpha": 0.1}, "alpha"),
    ):
        with pytest.raises(UserError, match=what):
            race(tmp_path, ("base", "good"), **more).refuse_another()
    with pytest.raises(UserError, match="declared with arms"):
        race(tmp_path, ("base", "good", "bad")).refuse_another()
    race(tmp_path, ("base", "good"), max_seeds=50).refuse_another()


class Failing(FolderLauncher):
    """Jobs of one arm and seed fail, for a reason."""

    def __init__(self, name, seed, failure):
        super().__init__(6, final=scored)
        self.bad, self.failure = f"arm={name},seed={seed}", failure

    def process_states(self):
        found = super().process_states()
        for folder in found:
            if folder.name == self.bad and not found[folder]:
                summary = {"state": "failed", "step": 0, "failure": self.failure, "error": "planned"}
                (folder / "summary.json").write_text(json.dumps(summary))
        return found


def test_a_failed_run_ends_its_arm_and_no_other(tmp_path):
    code, text, launcher = drive(tmp_path, race(tmp_path), Failing("bad", 2, "config"))
    assert code == 1
    assert said(tmp_path) == {"good": by_hand("good"), "bad": ("failed", 2), "same": by_hand("same")}
    assert "bad: failed after 2 pairs" in text
    assert "arm=bad,seed=2: planned" in text
    assert sum("arm=bad," in f.name for f in launcher.started) <= 5


def test_an_arm_without_its_baseline_has_no_pair(tmp_path):
    code, _, _ = drive(tmp_path, race(tmp_path), Failing("base", 2, "config"))
    assert (code, set(said(tmp_path).values())) == (1, {("failed", 2)})


def test_a_run_that_waits_for_a_person_pauses_the_race_and_the_same_command_goes_on(tmp_path):
    code, text, _ = drive(tmp_path, race(tmp_path), Failing("good", 1, "input"))
    assert code == 1
    assert "the race is paused until the same command is given again" in text
    assert said(tmp_path)["good"] == ("open", 1)
    assert drive(tmp_path, race(tmp_path))[0] == 0
    assert said(tmp_path) == {name: by_hand(name) for name in ("good", "bad", "same")}


RACING = ("-m", "hydra/sweeper=race", "train.steps=1", *SMALL)


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        (["method=grpo"], "expected a baseline and at least one other arm"),
        (["method=grpo,rlrt", "seed=0,1"], "seed: a race gives its own seeds"),
        (["method=grpo,rlrt", "seed=3"], "seed: a race gives its own seeds"),
        (["method=grpo,rlrt", "hydra.sweeper.baseline={method:sd}"], "exactly one arm has, got method=sd, which 0 of 2 have"),
        (["method=grpo,rlrt", "train.lr=1e-3,1e-4", "hydra.sweeper.baseline={method:grpo}"], "which 2 of 4 have"),
        (["method=grpo,rlrt", "hydra.sweeper.margin=0"], "hydra.sweeper.margin: expected a number above 0"),
        (["method=grpo,rlrt", "hydra.sweeper.alpha=0.7"], "hydra.sweeper.alpha: expected a number of at most 0.5"),
        (["method=grpo,rlrt", "hydra.sweeper.max_seeds=6000"], "this race has 12000 jobs at most"),
        (["method=grpo,rlrt", "hydra.sweeper.first_seed=2147483647"], "the last seed to be at most 2147483647"),
    ],
)  # fmt: skip
def test_what_no_race_can_be_is_refused(typed, wrong):
    with pytest.raises(UserError, match=re.escape(wrong)):
        configs(["hydra/sweeper=race", *typed])


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        (["hydra.sweeper.metric=eval/avg_at_9"], "hydra.sweeper.metric: expected metrics of the final"),
        (["resume=never"], "resume=never: it goes on with its runs"),
        (["hydra/launcher=slurm", "hydra.launcher.wait=false"], "hydra.launcher.wait=false: a race"),
    ],
)
def test_nor_does_a_run_start(tmp_path, typed, wrong):
    code, output = quick(tmp_path, *RACING, "method=grpo,rlrt", *typed)
    assert code == 2
    assert wrong in output
    assert not list(tmp_path.rglob("job.json"))


def test_the_arms_are_what_a_grid_would_have_with_the_baseline_first():
    shown = configs(["hydra/sweeper=race", "method=rlrt,grpo", "hydra.sweeper.baseline={method:grpo}"])
    assert [overrides for overrides, _ in shown] == ["method=grpo", "method=rlrt"]


def test_a_race_of_real_runs_goes_on_and_reports(tmp_path):
    typed = [
        *RACING, "hydra.sweeper.grids=[{method:rlrt,method.lambda_init:0.5},{method:grpo}]", "hydra.sweeper.max_seeds=1",
        "hydra.sweeper.baseline={method:grpo}", "hydra.sweep.dir=r", "hydra.sweeper.first_seed=40",
    ]  # fmt: skip
    code, output = quick(tmp_path, *typed)
    assert code == 0, output
    assert "rlrt method.lambda_init=0.5: cannot tell after 1 pair" in output
    stored = read_json(tmp_path / "r" / RACE)
    assert stored["baseline"] == {"name": "grpo", "runs": 1}
    runs = {read_json(f)["seed"]: f for f in (tmp_path / "r").glob("*/manifest.json")}
    assert set(runs) == {40}
    report = read(tmp_path / "r", None)
    assert report.baseline == "grpo"
    assert set(labels_of(report.jobs)) == {"grpo", *(arm["name"] for arm in stored["arms"])}
    assert "| rlrt method.lambda_init=0.5 | cannot tell | 1 |" in report.markdown()
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "r").glob("*/manifest.json")}
    assert quick(tmp_path, *typed)[0] == 0
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "r").glob("*/manifest.json")} == times
