"""The testbed's shipped models are what their recipe recorded, and leave room; they are checked, not made anew."""

from __future__ import annotations

import json

import pytest

from rlrt.execution.build import build_learner
from rlrt.paths import SHIPPED, TESTBED
from rlrt.pretrain.measure import start_numbers
from tests.helpers import settings

KINDS = sorted(name.removeprefix("testbed/") for name in SHIPPED if name.startswith("testbed/"))
RECORDED = {kind: json.loads((TESTBED / kind / "start.json").read_text()) for kind in KINDS}


def test_what_is_shipped_is_named_and_small():
    assert {f.name for f in TESTBED.iterdir()} == set(KINDS)
    files = [f for f in TESTBED.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 8_000_000
    assert {f.suffix for f in files} == {".json", ".safetensors"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_model_reaches_what_was_recorded(kind):
    """By 8 of the 64 samples that were recorded."""
    data = "levels" if kind.startswith("levels") else "walk"
    made, recorded = settings(f"model=tiny_{kind}", f"data={data}"), RECORDED[kind]
    made.data.prepare()
    learner = build_learner(made)
    assert sum(p.numel() for p in learner.policy.model.parameters()) == recorded["parameters"]
    numbers = start_numbers(
        learner.policy.model, learner.policy.tokenizer, made.engine, made.data, made.model.prompt_template,
        made.teacher.template,
    )  # fmt: skip
    assert numbers["eval/greedy"] == pytest.approx(recorded["eval/greedy"], abs=0.01)
    assert numbers["eval/avg_at_8"] == pytest.approx(recorded["eval/avg_at_64"], abs=0.02)
    assert numbers["eval/pass_at_8"] == pytest.approx(recorded["eval/pass_at_8"], abs=0.06)
    assert numbers["teacher/avg_at_8"] == pytest.approx(recorded["teacher/avg_at_64"], abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_leaves_room_and_has_a_teacher(kind):
    start = RECORDED[kind]
    assert 0.05 <= start["eval/avg_at_64"] <= 0.2
    assert 0.5 <= start["eval/pass_at_64"] <= 0.85
    assert start["eval/pass_at_8"] < 0.6 * start["eval/pass_at_64"]
    assert start["teacher/gain"] > (1.75 if kind == "levels_thinking" else 2)  # it copies fewer of its examples


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("levels")])
def test_each_level_is_harder_than_the_one_before_and_has_room(kind):
    start = RECORDED[kind]
    for easier, harder in (("three", "four"), ("four", "five")):
        for metric in ("avg_at_64", "pass_at_8", "pass_at_64"):
            assert start[f"eval/{easier}/{metric}"] > start[f"eval/{harder}/{metric}"]
    assert start["eval/five/pass_at_64"] > 0.5
