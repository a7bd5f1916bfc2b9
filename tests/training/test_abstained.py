"""Rollouts that the verifier could not judge: no baseline, no token of the loss, no advantage."""

from __future__ import annotations

import copy

import pytest
import torch

from rlrt.sampling.grading import ERROR
from rlrt.training.batch import signals_of
from rlrt.training.update import learn, minibatches
from rlrt.types import Grade
from tests.helpers import METHODS
from tests.training.test_update import close, gradient, world

RIGHT, WRONG = Grade(True, 1.0), Grade(False, 0.0)
LOST = (1, 4, 8)
"""Rollouts, of four groups of six, that are errors."""


def graded(rollouts):
    """In each group the first three are right; some are errors."""
    for i, rollout in enumerate(rollouts):
        rollout.grade = ERROR if i in LOST else RIGHT if i % 6 < 3 else WRONG
    return rollouts


def advantages(learner, rollouts):
    """The one advantage of each rollout that the update used."""
    result = learn(learner, rollouts, signals_of(rollouts, 1, learner.policy.special_ids), 1e-3)
    values = result.tokens["advantage"]
    lengths = [len(r.generation.token_ids) for r in rollouts]
    assert all(bool((values[i, :n] == values[i, 0]).all()) for i, n in enumerate(lengths))
    return values[:, 0].tolist(), result


def test_a_groups_mean_and_deviation_are_of_the_judged_ones_by_hand():
    """Group 0 is 1 - 1 0 - 0: mean 1/2, so A = +-1/2; the sample deviation of four is sqrt(4 * 1/4 / 3) = sqrt(1/3).
    Group 1 (rollout 8 lost) is 1 1 - 0 0 0: mean 2/5, A = 3/5 and -2/5; deviation sqrt((2 * 9 + 3 * 4) / 25 / 4) = sqrt(3/10).
    """
    learner, rollouts, _ = world("method=drgrpo")
    values, result = advantages(learner, graded(rollouts))
    assert values[:6] == pytest.approx([0.5, 0.0, 0.5, -0.5, 0.0, -0.5])
    assert values[6:12] == pytest.approx([0.6, 0.6, 0.0, -0.4, -0.4, -0.4])
    assert [values[i] for i in LOST] == [0.0] * 3
    assert [result.shown[i] for i in LOST] == [None] * 3
    learner, rollouts, _ = world("method=grpo", "method.scale_by_std=true")
    values, _ = advantages(learner, graded(rollouts))
    assert values[:6] == pytest.approx([v * 3**0.5 for v in (0.5, 0, 0.5, -0.5, 0, -0.5)], abs=1e-5)
    assert values[6:12] == pytest.approx([v / 0.3**0.5 for v in (0.6, 0.6, 0, -0.4, -0.4, -0.4)], abs=1e-5)


def test_leave_one_out_is_of_the_judged_ones_by_hand():
    """1 - 1 0 - 0: a right one against the mean of 1, 0, 0 is 2/3; a wrong one against that of 1, 1, 0 is -2/3."""
    learner, rollouts, _ = world("method=rloo")
    values, _ = advantages(learner, graded(rollouts))
    assert values[:6] == pytest.approx([2 / 3, 0, 2 / 3, -2 / 3, 0, -2 / 3])


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_the_gradient_is_that_of_the_judged_ones_alone(aggregation):
    """So the tokens of the others are in no denominator either."""
    keys = ("method=grpo", f"train.aggregation={aggregation}")
    learner, rollouts, _ = world(*keys)
    whole = gradient(learner, graded(rollouts))
    other, rollouts, _ = world(*keys)
    alone = gradient(other, [r for r in graded(rollouts) if not r.grade.error])
    assert close(whole, alone, 1e-6)
    third, rollouts, _ = world(*keys)
    counted = graded(rollouts)
    for i in LOST:
        counted[i].grade = WRONG
    assert not close(whole, gradient(third, counted), 1e-3)  # as wrong answers they would have counted


@pytest.mark.parametrize("name", METHODS)
def test_no_method_learns_from_them(name):
    learner, rollouts, _ = world(f"method={name}", "train.minibatches=2")
    rollouts = graded(rollouts)
    result = learn(learner, rollouts, signals_of(rollouts, 1, learner.policy.special_ids), 1e-3)
    assert all(bool((result.tokens["advantage"][i] == 0).all()) for i in LOST)
    assert all(value == value for value in result.metrics.values())
    other, rollouts, _ = world(f"method={name}", "train.minibatches=2")
    alone = [r for r in graded(rollouts) if not r.grade.error]
    learn(other, alone, signals_of(alone, 1, other.policy.special_ids), 1e-3)
    for one, two in zip(learner.policy.model.parameters(), other.policy.model.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_a_whole_group_or_all_may_be_lost():
    learner, rollouts, _ = world("method=grpo", "train.minibatches=4")
    for i, rollout in enumerate(rollouts):
        rollout.grade = ERROR if i < 6 else RIGHT if i % 2 else WRONG
    values, _ = advantages(learner, rollouts)
    assert values[:6] == [0.0] * 6
    assert all(abs(v) > 0.4 for v in values[6:])
    before = copy.deepcopy(learner.policy.model.state_dict())
    for rollout in rollouts:
        rollout.grade = ERROR
    result = learn(learner, rollouts, signals_of(rollouts, 2, learner.policy.special_ids), 1e-3)
    assert (result.metrics, result.shown) == ({}, [None] * 24)
    assert all(torch.equal(v, before[k]) for k, v in learner.policy.model.state_dict().items())


def test_mini_batches_are_never_empty():
    parts = minibatches(torch.tensor([0, 0, 3, 3]), 4)
    assert [p.tolist() for p in parts] == [[0, 1], [2, 3]]
