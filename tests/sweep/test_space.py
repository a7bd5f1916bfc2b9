from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from rlrt.errors import UserError
from rlrt.sweep.space import described, grid_size, grid_values, overrides_of, space_of


def test_typed_sections_and_hydras_grammar():
    fixed, space = space_of(
        {
            "train.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "train.minibatches": {"type": "int", "low": 1, "high": 4},
            "method.epsilon_w": {"type": "choice", "choices": [0.2, 0.5]},
            "method.gate": ["correct", "all"],
            "method.lambda_init": "interval(0,1)",
            "train.steps": 5,
            "seed": "0,1",
        },
        ["method=rlrt", "train.beta1=tag(log,interval(0.1,0.9))", "train.warmup_steps=range(0,9,4)", "seed=7"],
    )
    assert fixed == ["train.steps=5", "method=rlrt", "seed=7"]  # what is typed wins
    assert space == {
        "train.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "train.minibatches": IntDistribution(1, 4),
        "method.epsilon_w": CategoricalDistribution([0.2, 0.5]),
        "method.gate": CategoricalDistribution(["correct", "all"]),
        "method.lambda_init": FloatDistribution(0.0, 1.0),
        "train.beta1": FloatDistribution(0.1, 0.9, log=True),
        "train.warmup_steps": IntDistribution(0, 8, step=4),
    }
    assert space_of({}, ["train.minibatches=tag(int,interval(1,4))"])[1] == {"train.minibatches": IntDistribution(1, 4)}


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "a search needs at least one key with a space"),
        ({"a": {"type": "flat"}}, r"params\.a\.type: expected one of float, int, choice, got 'flat'"),
        ({"a": {"type": "float", "low": 0}}, r"params\.a\.high: a space of type float needs it"),
        (
            {"a": {"type": "float", "low": 0, "high": 1, "lgo": True}},
            r"params\.a\.lgo: there is no such key. Did you mean",
        ),
        ({"a": {"type": "float", "low": 2, "high": 1}}, r"params\.a: .*low"),
        ({"a": {"type": "float", "low": 0, "high": 1, "log": True}}, r"params\.a: .*log"),
        ({"a": {"type": "int", "low": 0.5, "high": 1}}, r"params\.a\.low: expected a whole number, got 0.5"),
        ({"a": {"type": "float", "low": "x", "high": 1}}, r"params\.a\.low: expected a number, got 'x'"),
        ({"a": {"type": "choice", "choices": []}}, r"params\.a\.choices: expected a list of values"),
        ({"a": {"type": "choice", "choices": [{}]}}, r"params\.a\.choices: expected numbers, texts"),
    ],
)
def test_a_space_that_cannot_be_read_is_one_sentence(params, says):
    with pytest.raises(UserError, match=says):
        space_of(params, ["method=rlrt"])


def test_values_become_overrides_that_hydra_reads_back():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = {"a": 1e-05, "b": True, "c": None, "d": "text", "e": 3, "f": 0.1 + 0.2}
    parsed = OverridesParser.create().parse_overrides(overrides_of(values))
    assert {p.get_key_element(): p.value() for p in parsed} == values


def test_the_grid_over_a_space():
    space = {
        "a": CategoricalDistribution([1, 2]),
        "b": IntDistribution(0, 8, step=4),
        "c": FloatDistribution(0, 1, step=0.5),
    }
    assert grid_values(space) == {"a": [1, 2], "b": [0, 4, 8], "c": [0.0, 0.5, 1.0]}
    assert grid_size(space) == 18
    with pytest.raises(UserError, match="a range of numbers without steps"):
        grid_size({"a": FloatDistribution(0, 1)})


def test_a_spaces_description_does_not_depend_on_order():
    a, b = FloatDistribution(0, 1), IntDistribution(1, 2)
    assert described({"a": a, "b": b}) == described({"b": b, "a": a})
    assert described({"a": a}) != described({"a": FloatDistribution(0, 2)})
