from __future__ import annotations

from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from rlrt.errors import UserError
from rlrt.sweep.command import configs
from rlrt.sweep.plan import Job, combinations, grid_jobs, is_axis, of_the_whole, parse_axes
from rlrt.sweep.settings import GridKeys, grid_of, launcher_of
from tests.helpers import METHODS


def job(overrides):
    return Job(Path("x"), overrides, {}, {}, identity="|".join(sorted(overrides)))


def test_combinations_in_order():
    assert combinations({"a": ["1", "2"], "b": ["x"]}) == [("a=1", "b=x"), ("a=2", "b=x")]
    assert combinations({}) == [()]


def test_axes_of_hydras_grammar():
    axes = parse_axes(["a=1,2", "b=range(3)", "c=[1,2]", "+d=x", "e=", "f='u,v'"], {})
    assert axes["a"] == ["1", "2"]
    assert axes["b"] == ["0", "1", "2"]
    assert axes["c"] == ["[1,2]"]
    assert axes["+d"] == ["x"]
    assert axes["f"] == ["'u,v'"]
    assert [is_axis(a) for a in ("a=1,2", "a=[1,2]", "a=range(3)", "a=1")] == [True, False, True, False]


def test_what_is_typed_wins_over_the_study():
    assert parse_axes(["seed=7"], {"seed": "0,1,2", "method": ["rlrt", "grpo"]}) == {
        "method": ["rlrt", "grpo"],
        "seed": ["7"],
    }


def test_an_interval_needs_a_search():
    with pytest.raises(UserError, match="hydra/sweeper=optuna"):
        parse_axes(["train.lr=interval(0.1,1)"], {})


def test_the_union_of_grids_has_each_identity_once():
    jobs = grid_jobs(["seed=0,1"], {}, [{"a": "1,2"}, {"a": "2,3"}], job)
    assert [j.identity for j in jobs] == [f"a={a}|seed={s}" for a in (1, 2) for s in (0, 1)] + [
        "a=3|seed=0",
        "a=3|seed=1",
    ]


def test_one_seeds_jobs_come_before_the_next_ones():
    def seeded(overrides):
        (seed,) = [int(o.partition("=")[2]) for o in overrides if o.startswith("seed=")]
        return Job(Path("x"), overrides, {"seed": seed}, {}, identity="|".join(sorted(overrides)))

    jobs = grid_jobs([], {"seed": "4,0"}, [{"a": "1,2"}, {"a": "2,3"}], seeded)
    assert [j.identity for j in jobs] == [f"a={a}|seed={s}" for s in (4, 0) for a in (1, 2, 3)]


def test_a_key_that_only_the_options_of_an_axis_have_is_taken(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    shown = configs(["data=svamp,file", f"data.path={tmp_path}"])
    assert [config.count(f"path: {tmp_path}") for _, config in shown] == [1, 1]
    assert of_the_whole(["method=grpo,rlrt", "seed=1,2", "+data=choice(file,svamp)", "seed=3"]) == [
        "method=grpo",
        "+data=file",
        "seed=3",
    ]
    with pytest.raises(ConfigCompositionException, match=r"Could not override 'data\.path'"):
        configs(["data=countdown,svamp", "data.path=x"])


def test_configs_of_a_study():
    shown = configs(["+sweep=methods", "seed=7"])
    assert len(shown) == len(set(METHODS) - {"sft"})  # a supervised start is no method to compare with
    assert all("seed: 7" in config for _, config in shown)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_retries": "text"}, r"hydra\.sweeper\.max_retries: expected a whole number, got 'text'"),
        ({"max_retries": None}, r"hydra\.sweeper\.max_retries"),
        ({"max_retries": -1}, r"hydra\.sweeper\.max_retries"),
        ({"max_retries": 1, "grids": 5}, r"hydra\.sweeper\.grids: expected a list of sections"),
        ({"max_retries": 1, "grids": [5]}, r"hydra\.sweeper\.grids: expected a list of sections"),
        ({"max_retries": 1, "params": ["a"]}, r"hydra\.sweeper\.params: expected keys with their values"),
        ({"max_retries": 1, "parms": {}}, r"hydra\.sweeper\.parms: there is no such key. Did you mean"),
    ],
)
def test_grids_are_checked(values, says):
    with pytest.raises(UserError, match=says):
        grid_of(values, GridKeys, "grid")


def test_an_axis_needs_values():
    with pytest.raises(UserError, match="the axis seed has no values"):
        parse_axes([], {"seed": []})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"kind": "local", "n_jobs": 0, "threads_per_job": None, "tasks_per_node": 1, "gpus_per_node": None},
            r"hydra\.launcher\.n_jobs: .* at least 1",
        ),
        ({"kind": "local", "n_job": 1, "threads_per_job": None}, r"n_job: there is no such key\. Did you mean"),
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, "expected local or slurm"),
    ],
)
def test_launchers_are_checked(values, says):
    with pytest.raises(UserError, match=says):
        launcher_of(values)
