"""A search's best on seeds that its trials have not seen, beside the default: what is run, reported, and done after a kill."""

from __future__ import annotations

import io
import json
import re
from importlib.util import find_spec

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

import rlrt.sweep.driver
from rlrt.records.files import read_json
from rlrt.reporting.confirmed import BEST, confirmation
from rlrt.reporting.page import read
from rlrt.sweep.confirm import Confirmed
from rlrt.sweep.driver import Driver
from rlrt.sweep.rehearsal import rehearse, slow_sampler
from rlrt.sweep.search import Search
from tests.sweep.fake import FolderLauncher, killed_after
from tests.sweep.test_driver import SMALL, quick
from tests.sweep.test_repeats import job_in
from tests.sweep.test_search import METRIC, plan

FRESH = (7, 8, 9)
LUCK = {7: 0.01, 8: -0.01, 9: 0.0}


@pytest.fixture(autouse=True)
def sleeps(monkeypatch):
    made = []
    monkeypatch.setattr(rlrt.sweep.driver.time, "sleep", made.append)
    return made


def scored(folder):
    """b looks best on seed 0 by luck alone; on every other seed it is worth .02 more than the default."""
    x, seed = re.search(r"x=(\w)", folder.name), re.search(r"seed=(\d+)", folder.name)
    if seed is None or int(seed[1]) < 7:
        return {METRIC: {"a": 0.5, "b": 0.9, "c": 0.4}[x[1]]}
    return {METRIC: 0.5 + (0.02 + LUCK[int(seed[1])] if x else 0.0)}


def confirmed(folder, **more):
    space = {"x": CategoricalDistribution(["a", "b", "c"])}
    made = plan(space=space, n_trials=6, sampler={"_target_": "optuna.samplers.RandomSampler"}, **more)
    return Confirmed(Search(folder, made, job_in(folder)), folder, METRIC, FRESH, job_in(folder))


def drive(folder, source, final=scored):
    out, launcher = io.StringIO(), FolderLauncher(4, final=final)
    code = Driver(folder, source, launcher, 0, {"uri": None}, out).run()
    return code, out.getvalue(), [f.name for f in launcher.started]


def test_fresh_seeds_of_best_and_default_are_run_and_reported_instead_of_the_searchs_value(tmp_path):
    code, text, started = drive(tmp_path, confirmed(tmp_path))
    assert code == 0
    assert sorted(started[-6:]) == sorted([*(f"x=b,seed={s}" for s in FRESH), *(f"seed={s}" for s in FRESH)])
    stored = read_json(tmp_path / BEST)
    assert stored["best"][0]["values"] == {METRIC: 0.9}
    assert stored["confirmation"]["seeds"] == list(FRESH)
    assert stored["confirmation"]["confirmed/difference"] == pytest.approx(0.02)
    closing = confirmed(tmp_path)
    closing.begin()
    assert drive(tmp_path, closing)[2] == []  # nothing runs twice
    # differences .03 .01 .02: mean .02, standard deviation .01, half-width 4.3027 x .01 / sqrt(3)
    assert (
        f"confirmed on 3 fresh seeds: {METRIC} 0.5200 ± 0.0248, the default's 0.5000 ± 0.0000, paired difference "
        in text
    )
    assert "+0.0200 ± 0.0248 (95 %, Student's t)" in text
    assert "the search's own value of its best was chosen for being high" in text
    (row,) = confirmation(tmp_path).rows
    assert row == ["x=b", METRIC, "0.9000", "3", "0.5200 ± 0.0248", "0.5000 ± 0.0000", "+0.0200 ± 0.0248"]


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"best": []}', '{"best": [{"overrides": 3}]}', '{"best": [{"overrides": [], "values": {}}]}',
                '{"best": [{"overrides": [], "values": {"m": "x"}}]}',
                '{"best": [{"overrides": [], "values": {"m": 1}}], "confirmation": {"pairs": [[1]]}}'],
)  # fmt: skip
def test_a_file_that_is_no_best_is_left_out_with_a_warning(tmp_path, caplog, content):
    (tmp_path / BEST).write_text(content)
    assert confirmation(tmp_path) is None
    assert "best.json: expected a search's best" in caplog.text


def test_mlflow_gets_the_confirmed_values_and_not_the_searchs(tmp_path):
    source = confirmed(tmp_path)
    drive(tmp_path, source)
    ended = {job.folder: rlrt.sweep.driver.job_state(job.folder) for pair in source._pairs for job in pair}
    closing = source.close(ended)
    assert closing.metrics == pytest.approx(
        {"confirmed/best": 0.52, "confirmed/default": 0.5, "confirmed/difference": 0.02}
    )
    assert closing.tags["rlrt.best.x"] == "b"


@pytest.mark.parametrize("looks", [2, 8, 11])
def test_a_killed_search_confirms_the_same_best_and_runs_nothing_again(tmp_path, monkeypatch, looks):
    with killed_after(looks, monkeypatch):
        drive(tmp_path, confirmed(tmp_path, n_jobs=1))
    done = {f.parent.name for f in tmp_path.glob("*/summary.json") if read_json(f).get("state") == "finished"}
    code, _, started = drive(tmp_path, confirmed(tmp_path, n_jobs=1))
    assert (code, done & set(started)) == (0, set())
    assert read_json(tmp_path / BEST)["confirmation"]["confirmed/best"] == pytest.approx(0.52)


def test_a_seed_without_a_number_is_missing_and_said(tmp_path):
    def final(folder):
        return {METRIC: "nan"} if folder.name == "seed=8" else scored(folder)

    code, text, _ = drive(tmp_path, confirmed(tmp_path), final)
    assert code == 1
    assert "confirmed on 2 of 3 seeds only" in text
    assert len(read_json(tmp_path / BEST)["confirmation"]["pairs"]) == 2


def test_nothing_is_confirmed_where_no_trial_is_complete(tmp_path):
    code, text, started = drive(tmp_path, confirmed(tmp_path), lambda folder: {METRIC: "nan"})
    assert code == 1
    assert "fresh seeds" not in text
    assert confirmation(tmp_path) is None
    assert not any("seed=" in name for name in started)


SEARCH = (
    "-m",
    "hydra/sweeper=optuna",
    "hydra/sweeper/sampler=random",
    "method=rlrt",
    "method.lambda_init=0.2,0.8",
    "train.steps=1",
)


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        (
            ["method.lambda_init=0.5", "seed=0,1"],
            "hydra.sweeper.confirm: the best of a search over seed has no fresh seeds",
        ),
        (["hydra.sweeper.objective=[eval/avg_at_8,eval/greedy]"], "hydra.sweeper.confirm: expected one objective"),
        (["seed=2147483646"], "hydra.sweeper.confirm: expected seeds of at most 2147483647"),
    ],
)
def test_what_cannot_be_confirmed_is_refused(tmp_path, typed, wrong):
    code, output = quick(tmp_path, *SEARCH, *SMALL, "hydra.sweeper.confirm=2", *typed)
    assert code == 2
    assert wrong in output


def test_a_real_search_confirms_its_best(tmp_path):
    more = ("hydra.sweeper.n_trials=1", "hydra.sweeper.confirm=1", "hydra.sweep.dir=s", "trial.seeds=[4]")
    code, output = quick(tmp_path, *SEARCH, *SMALL, *more)
    assert code == 0, output
    assert "confirmed on 1 fresh seed:" in output
    seeds = sorted(read_json(f)["seed"] for f in (tmp_path / "s").glob("*/manifest.json"))
    assert seeds == [4, 5, 5]
    (best,) = read_json(tmp_path / "s" / BEST)["best"]
    specs = [read_json(f) for f in (tmp_path / "s").glob("*/job.json")]
    tried = {json.dumps(s["tags"].get("rlrt.confirms")): s["plain"]["method"]["lambda_init"] for s in specs}
    assert tried['"best"'] == float(best["params"]["method.lambda_init"])
    assert tried['"default"'] == 0.5
    text = read(tmp_path / "s", None).markdown()
    assert f"| method.lambda_init={best['params']['method.lambda_init']} | eval/avg_at_8 |" in text
    assert "every other table and figure of this page, are exploratory" in text


def test_a_gaussian_process_proposes_and_says_what_makes_it_faster():
    section = {"_target_": "optuna.samplers.GPSampler", "n_startup_trials": 1}
    assert 0 <= rehearse(plan(space={"x": FloatDistribution(0, 1)}, sampler=section))["x"] <= 1
    assert ("pip install greenlet" in slow_sampler(section)) == (find_spec("greenlet") is None)
    assert slow_sampler({"_target_": "optuna.samplers.TPESampler"}) == ""
