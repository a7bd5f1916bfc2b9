from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.grpo import ClippedLoss, clipped_loss, group_advantage, in_mixed_groups, policy_ratio

F64 = torch.float64


def test_advantage_by_hand():
    # rewards 1 0 0 1 0: mean 0.4; squared distances .36 .16 .16 .36 .16 = 1.2; / (5 - 1) = 0.3; std = 0.5477225575
    reward = torch.tensor([1, 0, 0, 1, 0], dtype=F64)
    group = torch.zeros(5, dtype=torch.long)
    assert group_advantage(reward, group, False).tolist() == pytest.approx([0.6, -0.4, -0.4, 0.6, -0.4], abs=1e-15)
    std = math.sqrt(0.3)
    expected = [0.6 / (std + 1e-6), -0.4 / (std + 1e-6)]
    assert group_advantage(reward, group, True)[:2].tolist() == pytest.approx(expected, abs=1e-12)


def test_groups_are_apart_in_any_order():
    reward = torch.tensor([1.0, 5.0, 0.0, 7.0], dtype=F64)
    group = torch.tensor([0, 1, 0, 1])
    assert group_advantage(reward, group, False).tolist() == [0.5, -1.0, -0.5, 1.0]


@pytest.mark.parametrize("scale", [True, False])
def test_equal_rewards_give_exactly_zero(scale):
    # 0.1 + 0.1 + 0.1 over 3 is not 0.1 in floating point: the zero must not depend on it
    reward = torch.full((3,), 0.1, dtype=torch.float32)
    assert group_advantage(reward, torch.zeros(3, dtype=torch.long), scale).tolist() == [0.0, 0.0, 0.0]


def test_only_groups_with_both_verdicts_keep_their_advantages():
    """Groups, not in order: 0 is mixed, 1 all correct, 2 all wrong; shaped rewards differ in all of them."""
    group = torch.tensor([0, 1, 2, 0, 1, 2])
    correct = torch.tensor([True, True, False, False, True, False])
    reward = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5, -0.5], dtype=F64)
    advantage = group_advantage(reward, group, False)
    assert advantage.tolist() == [0.5, 0.25, 0.25, -0.5, -0.25, -0.25]
    assert in_mixed_groups(advantage, correct, group).tolist() == [0.5, 0.0, 0.0, -0.5, 0.0, 0.0]


def test_clipped_loss_by_hand():
    # ratios e^{log 1.5} = 1.5 and 0.5, bounds 0.8 and 1.28
    logp = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]], dtype=F64))
    advantage = torch.tensor([[2.0, -2.0, 2.0, -2.0, 3.0]], dtype=F64)
    loss = clipped_loss(logp, torch.zeros(1, 5, dtype=F64), advantage, 0.2, 0.28)
    # min(3, 2.56); min(-3, -2.56); min(1, 1.6); min(-1, -1.6); 3.3; the sign turned
    assert loss.tolist()[0] == pytest.approx([-2.56, 3.0, -1.0, 1.6, -3.3], abs=1e-12)


def test_clipped_is_where_the_gradient_is_held_back():
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]], dtype=F64)
    advantage = torch.tensor([[2.0, -2.0, 2.0, -2.0, 3.0]], dtype=F64)
    loss = ClippedLoss(clip_low=0.2, clip_high=0.28, clip_dual=None)
    assert loss.clipped(
        ratio.log(), torch.zeros(1, 5, dtype=F64), advantage, torch.ones(1, 5, dtype=torch.bool)
    ).tolist() == [[True, False, False, True, False]]


def test_gradient_stops_outside_the_trust_region():
    logp = torch.log(torch.tensor([[1.5, 1.1]], dtype=F64)).requires_grad_()
    clipped_loss(logp, torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64), 0.2, 0.28).sum().backward()
    assert logp.grad is not None
    assert logp.grad[0].tolist() == pytest.approx([0.0, -1.1], abs=1e-12)  # d/dlogp of -rho A is -rho A


def test_ratio_is_clamped():
    assert float(policy_ratio(torch.tensor([100.0], dtype=F64), torch.zeros(1, dtype=F64))) == pytest.approx(
        math.exp(20)
    )
