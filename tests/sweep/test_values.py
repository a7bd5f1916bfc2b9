"""Values that YAML declares for a grid or a search arrive in the jobs as they are, and what cannot be swept is one sentence."""

from __future__ import annotations

import time

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from rlrt.config.compose import composer
from rlrt.config.overrides import grammar, read_back, written
from rlrt.errors import UserError
from rlrt.sweep.command import configs
from rlrt.sweep.jobs import group_folders, planned
from rlrt.sweep.plan import Job, combinations, count, grid_jobs, parse_axes
from rlrt.sweep.rehearsal import rehearse
from rlrt.sweep.settings import GridKeys, grid_of, search_of, zip_of
from rlrt.sweep.space import overrides_of, space_of
from tests.forked import forked
from tests.helpers import settings
from tests.sweep.test_search import GRID, NONE, TPE, plan

TEXTS = [
    "{prompt}>", "{prompt}, now:", "a,b", "null", "true", "1", "1e-3", "nan", "", " ", "it's", 'say "x"', "[a]", "{a:1}",
    "a\nb", "\\", "a\\'b", "x=y", "glob(g*)", "range(3)", "interval(0,1)", "ends with \\", "rlrt", "paper/x", "é", "(", "~",
]  # fmt: skip


def texts_of(overrides):
    return [read_back(o.split("=", 1)[1]) for o in overrides]


def job(overrides):
    return Job("x", overrides, {}, {}, identity="|".join(overrides))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_yaml_stays_that_text(text):
    assert texts_of(f"key={v}" for v in parse_axes([], {"key": [text, "other"]})["key"]) == [text, "other"]
    _, space = space_of({"key": {"type": "choice", "choices": [text, "other"]}}, ["method=rlrt"])
    assert texts_of(overrides_of({"key": space["key"].choices[0]})) == [text]
    assert space_of({"key": [text, "other"]}, [])[1] == space


@pytest.mark.parametrize(
    "value", [None, True, False, 0, -3, 1e-5, 0.1, ["a", None], [[1], ["x,y"]], {"a": {"b": "c,d"}}]
)
def test_other_values_of_yaml_too(value):
    assert [read_back(v) for v in parse_axes([], {"key": [value, 7]})["key"]] == [value, 7]


def test_names_need_no_quotes():
    assert [written(v) for v in ("rlrt", "Qwen/Qwen3-1.7B", "a_b", "x.y")] == ["rlrt", "Qwen/Qwen3-1.7B", "a_b", "x.y"]


def test_null_and_a_prompt_reach_the_config():
    shown = configs(["hydra.sweeper.params={model.lora:[null,16],model.prompt_template:['{prompt}>']}"])
    assert [f"lora: {v}" in config for (_, config), v in zip(shown, ("null", "16"), strict=True)] == [True, True]
    assert all("prompt_template: '{prompt}>'" in config for _, config in shown)


def test_a_search_over_prompts(tmp_path):
    """The whole way: YAML, Optuna's journal, a job's override, the run."""
    done = forked(
        "run",
        [
            "-m", "method=grpo", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "train.steps=1",
            "train.prompts_per_step=2", "eval.prompts=2", "eval.samples_per_prompt=1", "tracking=none",
            "hydra.sweeper.params={model.prompt_template:{type:choice,choices:['{prompt}>','{prompt}, so:']}}",
        ],
        tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 finished" in done.stdout


def test_glob_over_groups(tmp_path):
    assert parse_axes(["method=glob(g*)"], {})["method"] == ["grpo", "gspo"]
    assert parse_axes([], {"method": "glob([g*,r*],exclude=[rl*])"})["method"] == ["grpo", "gspo"]
    assert "paper/qwen3_8b/rlrt" in parse_axes(["experiment=glob(paper/*)"], {})["experiment"]
    models = parse_axes(["model=glob(*)"], {})["model"]
    assert "tiny" in models
    assert not [name for name in models if name.startswith("_")]  # a part of others is no option
    assert space_of({}, ["method=glob(g*)"])[1] == {"method": CategoricalDistribution(["grpo", "gspo"])}
    for bad in ("method=glob(zz*)", "seed=glob(*)"):
        with pytest.raises(UserError, match=r"expected names of options of the config group"):
            parse_axes([bad], {})


def test_glob_finds_options_of_a_users_own_folder(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "gmine.yaml").write_text("defaults: [/method/grpo@_here_]\nname: gmine\n")
    shown = configs(["method=glob(g*)"], [str(tmp_path)])
    assert [typed for typed, _ in shown] == ["method=gmine", "method=grpo", "method=gspo"]
    with composer([str(tmp_path)]) as compose:
        assert tmp_path in group_folders(compose([]))


def test_glob_without_m_says_so(tmp_path):
    done = forked("run", ["method=glob(g*)"], tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: method: several values make a sweep; add -m.\n")


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        (["seed=range(1000000000)"], 10**9),
        (["seed=range(0,1000000000000000000000000)"], "more than 10\\^15"),
        (["train.lr=range(0,1,9.5367431640625e-07)"], 2**20),
        (["seed=range(10000000,0,-1)"], 10**7),
        ([f"seed=range({'9' * 400})"], "more than 10\\^15"),
        (["seed=shuffle(range(10000000))"], 10**7),
        ([f"{name}=range(100)" for name in "abcdef"], 10**12),
        ([f"{name}=range({'9' * 400})" for name in "abcdefghijkl"], "more than 10\\^15"),
    ],
)
def test_a_grid_without_end_is_counted_and_refused(arguments, jobs):
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"hydra\.sweeper\.max_jobs: this grid has {jobs} jobs, more than the 10000"):
        grid_jobs(arguments, {}, [], job, max_jobs=10_000)
    assert time.monotonic() - start < 5


def test_max_jobs_counts_all_grids_and_zips():
    with pytest.raises(UserError, match="has 12 jobs"):
        grid_jobs(["seed=0,1,2"], {}, [{"a": "1,2"}, {"a": [3, 4]}], job, max_jobs=11)
    assert len(grid_jobs(["seed=0,1,2"], {}, [{"a": "1,2"}, {"a": [3, 4]}], job, max_jobs=12)) == 12
    assert len(grid_jobs(["a=range(50)", "b=range(50)"], {}, [], job, zipped=[["a", "b"]], max_jobs=50)) == 50


@pytest.mark.parametrize(
    "line",
    ["range(0,5)", "range(5)", "range(5,0,-2)", "range(0,1,0.1)", "range(1,0,-0.3)", "range(0,1,1e-2)", "1,2", "5"],
)
def test_the_count_is_the_number_of_values(line):
    from rlrt.sweep.plan import axes_of, values_of

    axis = axes_of([f"key={line}"], {})["key"]
    assert count(axis) == len(values_of(axis))


@pytest.mark.parametrize("line", ["range(0,1,0)", "range(0,inf)", "range(0,nan)", "range(0,1,inf)"])
def test_a_range_that_never_ends(line):
    for made in (lambda: parse_axes([f"seed={line}"], {}), lambda: space_of({}, [f"seed={line}"])):
        with pytest.raises(UserError, match="expected a range with finite numbers and a step other than 0"):
            made()


def test_an_axis_without_values():
    with pytest.raises(UserError, match="this axis has no values"):
        parse_axes(["seed=range(5,1)"], {})
    with pytest.raises(UserError, match=r"the axis model\.lora has no values; write null"):
        parse_axes([], {"model.lora": None})


def test_a_space_is_no_value_of_a_grid():
    with pytest.raises(UserError, match=r"params\.train\.lr: a space .* needs hydra/sweeper=optuna"):
        parse_axes([], {"train.lr": {"type": "float", "low": 0, "high": 1}})


def test_zipped_axes():
    axes = {"a": ["1", "2"], "b": ["x", "y"], "c": ["p", "q"]}
    assert combinations(axes, [["a", "c"]]) == [
        ("a=1", "c=p", "b=x"),
        ("a=1", "c=p", "b=y"),
        ("a=2", "c=q", "b=x"),
        ("a=2", "c=q", "b=y"),
    ]
    made = grid_jobs(["+a=1,2", "b=range(2)", "seed=7"], {}, [], job, zipped=[["a", "b"]])
    assert [j.overrides for j in made] == [("+a=1", "b=0", "seed=7"), ("+a=2", "b=1", "seed=7")]
    made = grid_jobs([], {"a": [1, 2]}, [{"b": [3, 4]}, {"b": [5, 6]}], job, zipped=[["a", "b"]])
    assert [j.overrides for j in made] == [("a=1", "b=3"), ("a=2", "b=4"), ("a=1", "b=5"), ("a=2", "b=6")]


@pytest.mark.parametrize(
    ("arguments", "zipped", "says"),
    [
        (["a=1,2", "b=1,2,3"], [["a", "b"]], "equal numbers of values, got a 2, b 3"),
        (["a=1,2"], [["a", "b"]], "b is not swept, but a is"),
        (["a=1,2"], [["b", "c"]], "expected keys that are swept, got b, c"),
        (["a=1,2", "b=5"], [["a", "b"]], "equal numbers of values, got a 2, b 1"),
    ],
)
def test_axes_that_do_not_go_together(arguments, zipped, says):
    with pytest.raises(UserError, match=says):
        grid_jobs(arguments, {}, [], job, zipped=zipped)


def test_the_shapes_of_zip():
    assert zip_of(["a", "+b"]) == [["a", "b"]]
    assert zip_of([["a", "b"], ["c", "d"]]) == [["a", "b"], ["c", "d"]]
    assert grid_of({"zip": None}, GridKeys, "grid").zip == []
    for bad in ("x", [["a"]], [["a", 1]], [[]], {"a": "b"}, ["a"]):
        with pytest.raises(UserError, match=r"hydra\.sweeper\.zip: expected lists of two or more keys"):
            zip_of(bad)
    with pytest.raises(UserError, match="a appears twice"):
        zip_of([["a", "b"], ["a", "c"]])


def test_zip_as_typed():
    typed = ["train.lr=1e-3,1e-4", "train.steps=5,9", "seed=0,1", "hydra.sweeper.zip=[[train.lr,train.steps]]"]
    assert [t for t, _ in configs(typed)] == [
        f"train.lr={lr} train.steps={steps} seed={seed}" for seed in (0, 1) for lr, steps in ((0.001, 5), (0.0001, 9))
    ]


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"type": "float", "low": float("nan"), "high": 1}, r"x\.low: expected a finite number, got nan"),
        ({"type": "float", "low": 0, "high": float("inf")}, r"x\.high: expected a finite number"),
        ({"type": "float", "low": 0, "high": 1, "step": float("nan")}, r"x\.step: expected a finite number"),
        ({"type": "float", "low": -1e308, "high": 1e308}, "difference is a finite number"),
        ({"type": "int", "low": 0, "high": 10**30}, r"x\.high: expected a number of at most 2147483647"),
        ({"type": "float", "low": 0, "high": 10**400}, r"x\.high: expected a number of at most 2147483647"),
        ({"type": "float", "low": 1, "high": 0}, "expected low to be at most high"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "above 0 on a logarithmic scale"),
        ({"type": "float", "low": 0, "high": 1, "log": 1}, "expected true or false"),
        ({"type": "float", "low": 0, "high": 1, "step": 0}, r"x\.step: expected a number above 0"),
        ({"type": "int", "low": 0, "high": 4, "step": -1}, r"x\.step: expected a number above 0"),
        ({"type": "float", "low": 0, "high": 1, "step": 2}, "at most high - low = 1"),
        ({"type": "float", "low": 0, "high": 1, "step": 1e-300}, "expected at most 2147483647 steps"),
    ],
)
def test_bounds_between_which_there_is_no_number(space, says):
    with pytest.raises(UserError, match=says):
        space_of({"x": space}, [])


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("interval(nan,1)", r"x\.low: expected a finite number"),
        ("interval(0,inf)", r"x\.high: expected a finite number"),
        ("tag(int,interval(0,nan))", "whole number|finite number"),
        ("tag(lgo,interval(0,1))", "expected the tags log, int or float, got lgo"),
        ("range(3,1)", "this axis has no values"),
        ("range(0,1,1e-300)", "expected at most 2147483647 steps"),
    ],
)
def test_bounds_as_typed(typed, says):
    with pytest.raises(UserError, match=says):
        space_of({}, [f"x={typed}"])


def test_ranges_as_typed():
    assert space_of({}, ["x=range(0,1000000000)"])[1] == {"x": IntDistribution(0, 999999999, step=1)}
    assert space_of({}, ["x=range(9,0,-4)"])[1] == {"x": IntDistribution(1, 9, step=4)}
    assert space_of({}, ["x=range(0,1,0.25)"])[1] == {"x": FloatDistribution(0.0, 0.75, step=0.25)}
    assert space_of({"x": {"type": "float", "low": 0, "high": 1, "step": 0.3}}, [])[1] == {
        "x": FloatDistribution(0, 0.9, step=0.3)
    }
    assert space_of({"x": {"type": "int", "low": 2, "high": 2, "step": 5}}, [])[1] == {
        "x": IntDistribution(2, 2, step=5)
    }


def test_a_choice_that_appears_twice_counts_once():
    assert space_of({"x": ["a", "b", "a"]}, [])[1] == {"x": CategoricalDistribution(["a", "b"])}
    assert space_of({}, ["x=1,2,1"])[1] == {"x": CategoricalDistribution(["1", "2"])}
    (space,) = space_of({"x": [1, True, 1.0, "1"]}, [])[1].values()
    assert space == CategoricalDistribution(["1", "true", "1.0", "'1'"])  # Optuna holds 1, true and 1.0 for equal


def searched(arguments, **more):
    values = {"objective": None, "direction": "maximize", "sampler": TPE, "pruner": NONE, "params": None} | more
    return search_of(values, arguments, lambda o: Job("x", o, settings(*o).plain, {}, "i"), None)


@pytest.mark.parametrize("seeds", ["[]", "[1,1]", "[-1]", "[99999999999]"])
def test_seeds_that_no_trial_can_have(seeds):
    with pytest.raises(UserError, match=r"trial\.seeds: expected one or more different whole numbers from 0 to"):
        searched(["train.lr=interval(0.1,1)", f"trial.seeds={seeds}"])


def test_a_seed_is_not_both_searched_and_given():
    with pytest.raises(UserError, match=r"trial\.seeds: .* seed cannot be searched"):
        searched(["seed=0,1", "trial.seeds=[0,1]"])
    assert searched(["seed=0,1"])[0].seeds == []


def test_a_search_without_end():
    with pytest.raises(UserError, match=r"hydra\.sweeper\.n_trials: this search has 20000 jobs, more than the 10000"):
        searched(["train.lr=interval(0.1,1)", "trial.seeds=[0,1]"], n_trials=10_000)
    with pytest.raises(UserError, match=r"hydra\.sweeper\.max_jobs: this grid has 1000000000 points"):
        searched(["seed=range(1000000000)"], sampler=GRID)
    assert searched(["seed=range(9)"], sampler=GRID, n_trials=10**6)[0].n_trials == 9


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"sampler": TPE | {"n_startup_trials": "x"}}, r"sampler: optuna\.samplers\.TPESampler cannot propose a trial"),
        (
            {"pruner": {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": "x", "n_warmup_steps": 0}},
            "pruner: .*cannot",
        ),
        ({"sampler": {"_target_": "optuna.samplers.Nothing"}}, "Nothing cannot be created"),
    ],
)
def test_a_sampler_that_cannot_do_it_is_refused_before_anything_starts(more, says):
    with pytest.raises(UserError, match=says):
        rehearse(plan(**more))


def test_a_sampler_that_can():
    for sampler in (TPE, {"_target_": "optuna.samplers.CmaEsSampler"}, {"_target_": "optuna.samplers.RandomSampler"}):
        rehearse(plan(sampler=sampler))
    rehearse(plan(sampler=GRID, space={"x": CategoricalDistribution(["a"])}))
    rehearse(plan(objectives=["a", "b"], directions=["maximize", "minimize"]))


def test_a_number_written_as_a_text_in_a_sweep(tmp_path):
    words = ("train.steps='1'", "train.save_every='1'", "train.prompts_per_step=2", "eval.prompts=2", "tracking=none")
    done = forked("run", ["-m", "method=grpo", *words], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1/1" in done.stdout


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_choice_offers_arrives_as_it_is(text):
    """Hydra gives ``choice``'s texts without quotes, and its own escapes cannot always be read again (``\\{prompt\\}>``)."""
    (values,) = parse_axes([f"model.prompt_template=choice({grammar(text)},tiny)"], {}).values()
    assert [read_back(value) for value in values] == [text, "tiny"]
    assert values[1] == "tiny"


def test_a_grids_trials_are_at_most_its_points(tmp_path):
    """So that the disk and the hours of those alone are asked for."""
    typed = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "method=grpo", "train.lr=1e-3,1e-4"]
    with composer() as compose:
        for trials, number in ((100, 2), (1, 1)):
            words = [*typed[:2], f"hydra.sweeper.n_trials={trials}"]
            assert planned(compose(words), [*words, *typed[2:]], tmp_path, compose)[1] == number
