"""Every declared study opens with its question and its cost, and composes to as many jobs as it says."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from rlrt.config.compose import composer, study_sweeper
from rlrt.paths import SMOLLM2, SWEEPS
from rlrt.sweep.command import configs
from rlrt.sweep.jobs import plain
from tests.helpers import MODELS, settings

STUDIES = sorted(str(p.relative_to(SWEEPS / "sweep").with_suffix("")) for p in (SWEEPS / "sweep").rglob("*.yaml"))
STARTS = {"real": SMOLLM2, "testbed": "testbed/base"}
"""The models of studies that are not on the embedded one."""
PAPER = [s for s in STUDIES if s.startswith("paper/")]


def cost(study):
    text = (SWEEPS / "sweep" / f"{study}.yaml").read_text()
    assert "# Question: " in text
    said = re.search(r"# Cost: (?:[^\n]*= )?(\d+) jobs", text)
    assert said is not None
    return int(said[1])


@pytest.mark.parametrize("study", [s for s in STUDIES if s not in PAPER])
def test_a_study_says_its_question_and_cost(study):
    shown = configs([f"+sweep={study}"])
    assert all(f"path: {STARTS.get(study, 'embedded')}" in config for _, config in shown)
    if study_sweeper([f"+sweep={study}"]) == ["hydra/sweeper=optuna"]:
        with composer() as compose:
            composed = compose([f"+sweep={study}"])
        assert cost(study) == composed.hydra.sweeper.n_trials * len(composed.trial.seeds)
        assert len(shown) == 1  # what all trials share
        return
    assert len(shown) == cost(study)
    assert len({config for _, config in shown}) == len(shown)


@pytest.mark.parametrize("study", PAPER)
def test_a_study_of_the_paper_is_its_recipe_and_can_be_rehearsed(study):
    shown = configs([f"+sweep={study}"])
    assert len(shown) == cost(study)
    model = study.removeprefix("paper/")
    assert model in MODELS
    for _, config in shown:
        for line in (
            "max_new_tokens: 20480",
            "prompts_per_step: 256",
            "minibatches: 2",
            "clip_high: 0.28",
            "kl_coef: 0.0",
        ):
            assert line in config
    path = settings(f"model={model}").model.path
    small = ["model=tiny", "data=countdown", "engine.max_new_tokens=48", "seed=0"]
    for _, config in shown:
        assert f"path: {path}" in config
    assert len(configs([f"+sweep={study}", *small])) == cost(study) / 3
    assert all("path: open-r1/DAPO-Math-17k-Processed" in config for _, config in shown)


def test_what_is_typed_wins_over_a_studys_choice_of_pruner():
    with composer() as compose:
        ours = plain(compose(["+sweep=optuna_rlrt"]).hydra.sweeper.pruner)
        typed = plain(compose(["+sweep=optuna_rlrt", "hydra/sweeper/pruner=median"]).hydra.sweeper.pruner)
    assert ours["_target_"].endswith("SuccessiveHalvingPruner")
    assert typed["_target_"].endswith("MedianPruner")


def test_composing_from_the_cache_is_composing():
    """Values set on a composition that was read once give what Hydra gives for the whole line."""
    from hydra import compose as hydras

    lines = [
        ["method=rlrt", "seed=3", "method.lambda_init=0.25", "train.lr=1e-4"],
        ["method=rlrt", "seed=4", "method.lambda_init=1"],
        ["method=sd", "teacher.weights=ema", "+data.extra=1"],
        [
            "+sweep=methods",
            "seed=1",
            "method=grpo",
            "model.path='a b'",
            "data.path=null",
            "train.steps=${train.save_every}",
        ],
    ]
    with composer() as compose:
        for line in lines:
            try:
                whole = hydras("config", overrides=line, return_hydra_config=True)
            except Exception as error:
                with pytest.raises(type(error)):
                    compose(line)
                continue
            mine = compose(line)
            keys = [str(k) for k in whole if k != "hydra"]
            assert plain(OmegaConf.masked_copy(mine, keys)) == plain(OmegaConf.masked_copy(whole, keys))
