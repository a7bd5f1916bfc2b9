"""RLOO, GSPO and CISPO by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.cispo import CappedLoss, capped_loss
from rlrt.methods.grpo import ClippedLoss, group_advantage
from rlrt.methods.gspo import SequenceClippedLoss, sequence_ratio
from rlrt.methods.rloo import leave_one_out

F64 = torch.float64


def f64(*rows):
    return torch.tensor(rows, dtype=F64)


def test_leave_one_out_by_hand():
    # rewards 1, 0, 0.5 of one group: 1 - .25, 0 - .75, .5 - .5; a group of one and a group of equals have nothing
    reward, group = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 1.0], dtype=F64), torch.tensor([0, 0, 0, 1, 2, 2])
    assert leave_one_out(reward, group).tolist() == pytest.approx([0.75, -0.75, 0.0, 0.0, 0.0, 0.0], abs=1e-15)


def test_leave_one_out_is_grpo_times_g_over_g_minus_one():
    reward, group = torch.rand(12, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 4
    expected = group_advantage(reward, group, False) * 4 / 3
    assert torch.allclose(leave_one_out(reward, group), expected, atol=1e-15)


def test_a_responses_ratio_is_the_geometric_mean_of_its_tokens():
    # gaps .1, .3 and -.2 over a response of two tokens, and one of one token: exp(.2), exp(-.2); padding counts nowhere
    old = f64([-1.0, -1.0], [-1.0, -1.0])
    new, mask = old + f64([0.1, 0.3], [-0.2, 9.0]), torch.tensor([[True, True], [True, False]])
    ratio = sequence_ratio(new, old, mask)
    assert ratio[0].tolist() == pytest.approx([math.exp(0.2)] * 2, abs=1e-12)
    assert float(ratio[1, 0]) == pytest.approx(math.exp(-0.2), abs=1e-12)


def test_the_token_form_has_the_gradient_of_the_sequence_form():
    """One advantage for all tokens: d/dtheta of s A averaged over the tokens is that of the sequence's own s A."""
    old, mask = f64([-1.0, -2.0, -0.5]), torch.ones(1, 3, dtype=torch.bool)
    new = (old + f64([0.1, -0.3, 0.05])).requires_grad_()
    slot = SequenceClippedLoss(clip_low=1.0, clip_high=10.0, clip_dual=None)
    loss = slot(new, old, torch.full((1, 3), 2.0, dtype=F64), mask).mean()
    (mine,) = torch.autograd.grad(loss, new)
    (theirs,) = torch.autograd.grad(-2.0 * (new - old).mean().exp(), new)
    assert torch.allclose(mine, theirs, atol=1e-15)


@pytest.mark.parametrize(("advantage", "held"), [(1.0, True), (-1.0, False)])
def test_gspos_bounds_hold_back_whole_responses(advantage, held):
    slot = SequenceClippedLoss(clip_low=3e-4, clip_high=4e-4, clip_dual=None)
    old, mask = f64([-1.0, -1.0]), torch.ones(1, 2, dtype=torch.bool)
    new = (old + f64([0.0, 0.001])).requires_grad_()  # s = exp(5e-4), over 1 + 4e-4
    advantage_BT = torch.full((1, 2), advantage, dtype=F64)
    (gradient,) = torch.autograd.grad(slot(new, old, advantage_BT, mask).sum(), new)
    assert bool((gradient == 0).all()) == held
    assert slot.clipped(new.detach(), old, advantage_BT, mask).all() == held


def test_the_dual_clip_ends_the_loss_of_a_negative_advantage():
    """Ratios 5, 2 and .5, bounds .8, 1.28 and 3; the loss is min(-min(rho A, clip A), -3 A) at A < 0."""
    old = f64([0.0, 0.0, 0.0, 0.0, 0.0])
    new = torch.log(f64([5.0, 2.0, 0.5, 5.0, 2.9])).requires_grad_()
    advantage, mask = f64([-1.0, -1.0, -1.0, 1.0, -2.0]), torch.ones(1, 5, dtype=torch.bool)
    slot = ClippedLoss(clip_low=0.2, clip_high=0.28, clip_dual=3.0)
    loss = slot(new, old, advantage, mask)
    # without it: 5, 2, .8, -1.28, 5.8; A > 0 is untouched
    assert loss[0].tolist() == pytest.approx([3.0, 2.0, 0.8, -1.28, 5.8], abs=1e-12)
    (gradient,) = torch.autograd.grad(loss[:, :4].sum(), new)
    assert gradient[0].tolist() == pytest.approx([0.0, 2.0, 0.0, 0.0, 0.0], abs=1e-12)  # rho where nothing is held back
    assert slot.clipped(new.detach(), old, advantage, mask).tolist() == [[True, False, True, True, False]]
    plain = ClippedLoss(clip_low=0.2, clip_high=0.28, clip_dual=None)
    assert plain(new, old, advantage, mask)[0].tolist() == pytest.approx([5.0, 2.0, 0.8, -1.28, 5.8], abs=1e-12)
    assert plain.clipped(new.detach(), old, advantage, mask).tolist() == [[False, False, True, True, False]]


def test_the_dual_clip_of_gspo_is_about_the_response():
    """Gaps log 2 and log 8: s = 4 at both tokens, over 3, so neither has a gradient; the first token alone is at 2."""
    slot = SequenceClippedLoss(clip_low=3e-4, clip_high=4e-4, clip_dual=3.0)
    old, mask = f64([-3.0, -3.0]), torch.ones(1, 2, dtype=torch.bool)
    new = (old + torch.log(f64([2.0, 8.0]))).requires_grad_()
    advantage = f64([-1.0, -1.0])
    loss = slot(new, old, advantage, mask)
    assert loss[0].tolist() == pytest.approx([3.0, 3.0], abs=1e-12)
    assert torch.autograd.grad(loss.sum(), new)[0].tolist() == [[0.0, 0.0]]
    assert slot.clipped(new.detach(), old, advantage, mask).tolist() == [[True, True]]


def test_cispo_by_hand_and_its_gradient_is_never_cut():
    # ratios e^1 and e^3 = 20.1, capped at 5; A = 2 and -1: -e * 2 * -1 and -5 * -1 * -.5
    old = f64([-2.0, -3.5])
    new = (old + f64([1.0, 3.0])).requires_grad_()
    loss = capped_loss(new, old, f64([2.0, -1.0]), 5.0)
    assert loss.detach()[0].tolist() == pytest.approx([2 * math.e, -2.5], abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    assert gradient[0].tolist() == pytest.approx([-2 * math.e, 5.0], abs=1e-12)
    slot, mask = CappedLoss(cispo_cap=5.0), torch.ones(1, 2, dtype=torch.bool)
    assert slot.clipped(new.detach(), old, f64([2.0, -1.0]), mask).tolist() == [[False, True]]


def test_on_policy_all_policy_losses_have_one_gradient():
    """At pi = pi_old every one of them is the plain policy gradient."""
    logp, advantage, mask = f64([-1.0, -0.5, -2.0]), f64([1.0, -2.0, 0.5]), torch.ones(1, 3, dtype=torch.bool)
    found = []
    for slot in (ClippedLoss(0.2, 0.28, 3.0), SequenceClippedLoss(3e-4, 4e-4, None), CappedLoss(5.0)):
        new = logp.clone().requires_grad_()
        found.append(torch.autograd.grad(slot(new, logp, advantage, mask).sum(), new)[0])
    assert all(torch.allclose(g, -advantage, atol=1e-12) for g in found)
