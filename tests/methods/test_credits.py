"""AntiSD, DASD and RLCSD by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from rlrt.methods.aggregate import token_weights
from rlrt.methods.antisd import Repulsion, repulsion
from rlrt.methods.contexts import Sibling
from rlrt.methods.dasd import adaptive_signal
from rlrt.methods.rlcsd import ContrastiveCredit, contrast, contrastive_reward, same_sign_sum
from rlrt.methods.signals import TeacherSignal
from tests.helpers import method_of, signals

F64 = torch.float64


def f64(*rows):
    return torch.tensor(rows, dtype=F64)


def test_repulsion_by_hand():
    # phi(0) = 0; phi(log 3) = (log 4 - log 2) / 2 = log(2) / 2; phi(-20) is nearly -log(2) / 2
    values = repulsion(f64([0.0, math.log(3), -100.0]))[0].tolist()
    assert values == pytest.approx([0.0, math.log(2) / 2, -math.log(2) / 2], abs=1e-8)


def repelled(slot, entropy, step, student=-1.0, teacher=-0.5):
    batch = signals([1.0, 0.0], [0, 0], [1, 1], f64([student], [student]), f64([teacher], [teacher]), step=step)
    batch.teachers[0].entropy_BT = torch.full((2, 1), entropy, dtype=F64)
    return slot(torch.tensor([1.0, -1.0], dtype=F64), batch)


def gated(high=1.0):
    return Repulsion(antisd_lambda=0.5, antisd_low=0.93, antisd_high=high, antisd_warm_steps=2)


def test_the_gate_warms_closes_and_opens():
    slot = gated()
    assert [repelled(slot, h, s).metrics["antisd/lambda"] for s, h in ((1, 1.0), (2, 3.0))] == [0.0, 0.0]  # H_warm = 2
    steps = [(3, 1.9, 0.5), (4, 1.85, 0.0), (5, 1.95, 0.0), (6, 2.0, 0.5), (7, 1.87, 0.5)]  # .93 * 2 = 1.86
    for step, entropy, lam in steps:
        assert repelled(slot, entropy, step).metrics["antisd/lambda"] == lam, step
    result = repelled(slot, 2.5, 8).advantage_BT
    push = 0.5 * (math.log1p(math.exp(0.5)) - math.log(2)) / 2  # u = .5
    assert result[:, 0].tolist() == pytest.approx([1.0 - push, -1.0 - push], abs=1e-12)


def test_the_gate_opens_again_at_the_share_that_is_asked_for():
    slot = gated(high=1.07)
    steps = [(1, 1.0), (2, 3.0), (3, 1.87), (4, 1.85), (5, 2.1), (6, 2.15), (7, 1.87)]  # 1.07 * 2 = 2.14
    found = [repelled(slot, entropy, step).metrics["antisd/lambda"] for step, entropy in steps]
    assert found == [0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 0.5]


def test_the_gate_moves_once_a_step_however_often_the_step_credits():
    """As with a live teacher and two mini-batches: H_warm is the mean of two first medians, 2, not of four; and the second
    mini-batch of a step finds the gate as the first left it."""
    slot = gated()
    for step, entropies in ((1, (1.0, 9.0)), (2, (3.0, 9.0))):
        assert [repelled(slot, h, step).metrics["antisd/lambda"] for h in entropies] == [0.0, 0.0]
    assert slot.state_dict() == {"warm_1": 1.0, "warm_2": 3.0, "open": 1.0}
    assert [repelled(slot, h, 3).metrics["antisd/lambda"] for h in (1.85, 2.5)] == [0.0, 0.0]
    assert [repelled(slot, h, 4).metrics["antisd/lambda"] for h in (2.0, 1.0)] == [0.5, 0.5]


def test_the_gate_is_checkpointed():
    slot = gated()
    for step, entropy in ((1, 1.0), (2, 3.0), (3, 1.0)):
        repelled(slot, entropy, step)
    twin = gated()
    twin.load_state_dict(copy.deepcopy(slot.state_dict()))
    assert twin.state_dict() == slot.state_dict() == {"warm_1": 1.0, "warm_2": 3.0, "open": 0.0}
    assert repelled(twin, 1.95, 4).metrics["antisd/lambda"] == 0.0  # still closed


def test_a_step_that_is_run_again_by_the_next_life_is_measured_once():
    """A run that ends within step 2 saves the step's median with the weights of step 1: H_warm is (1 + 3) / 2 = 2 after both
    lives, not (1 + 3 + 3) / 3 = 2.33, under which .93 * 2.33 = 2.17 would close the gate at 2."""
    slot = gated()
    for step, entropy in ((1, 1.0), (2, 3.0)):
        repelled(slot, entropy, step)
    twin = gated()
    twin.load_state_dict(slot.state_dict())
    assert repelled(twin, 3.0, 2).metrics["antisd/lambda"] == 0.0
    assert twin.state_dict() == slot.state_dict()
    assert repelled(twin, 2.0, 3).metrics["antisd/lambda"] == 0.5


def test_dasd_by_hand():
    # d = .2, -.4, .4: median |d| = .4, dbar = .5, -1, 1; H = 0, 1, 2: Q_.2 = .4, spread = 2/3
    gap, entropy, mask = f64([0.2, -0.4, 0.4]), f64([0.0, 1.0, 2.0]), torch.ones(1, 3, dtype=torch.bool)
    sigmoid = [1 / (1 + math.exp(-(x - 1))) for x in (0.5, 1.0, 1.0)]
    sure = [math.tanh((0.4 - h) / (2 / 3)) for h in (0.0, 1.0, 2.0)]
    expected = [s * g * d for s, g, d in zip(sure, sigmoid, (0.5, -1.0, 1.0), strict=True)]
    assert adaptive_signal(gap, entropy, mask, 0.2, 1e-6)[0].tolist() == pytest.approx(
        expected, abs=1e-5
    )  # eps is 1e-6
    assert expected[0] > 0 > expected[2]  # followed where sure, reversed where not


def test_dasd_reads_each_rollout_by_itself_and_nothing_outside_it():
    gap, entropy = f64([0.2, -0.4, 9.0], [0.1, 0.1, 0.1]), f64([0.0, 1.0, 9.0], [1.0, 1.0, 1.0])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    both = adaptive_signal(gap, entropy, mask, 0.2, 1e-6)
    alone = adaptive_signal(gap[:1, :2], entropy[:1, :2], mask[:1, :2], 0.2, 1e-6)
    assert torch.equal(both[0, :2], alone[0])
    assert both[0, 2] == 0
    assert torch.equal(both[1], torch.zeros(3, dtype=F64))  # one entropy everywhere: no token is surer than another


def view(has, *logp):
    return TeacherSignal(torch.tensor(has), f64(*logp), torch.zeros(len(has), len(logp[0]), dtype=F64))


def test_contrast_by_hand():
    # log .5 - log mean(.1, .3) = log 2.5; with one wrong context only: log .5 - log .1 = log 5; without any: 0
    correct = view([True, True, True], [math.log(0.5)], [math.log(0.5)], [math.log(0.5)])
    wrong = [
        view([True, True, False], [math.log(0.1)], [math.log(0.1)], [0.0]),
        view([True, False, False], [math.log(0.3)], [0.0], [0.0]),
    ]
    value, has = contrast(correct, wrong)
    assert value[:, 0].tolist() == pytest.approx([math.log(2.5), math.log(5), 0.0], abs=1e-12)
    assert has.tolist() == [True, True, False]


def test_the_reward_is_bounded_and_keeps_the_advantages_sign():
    reward = contrastive_reward(f64([0.0, 0.02, -9.0]), 0.5, 0.02, 2.0)[0].tolist()
    assert reward == pytest.approx([0.0, 0.5 * math.tanh(1.0), -0.5], abs=1e-12)
    assert contrastive_reward(f64([9.0]), 5.0, 0.02, 2.0)[0].tolist() == [2.0]
    total = same_sign_sum(f64([0.3, 0.3, -0.3, -0.3, 0.0]), f64([-0.5, 0.5, 0.5, -0.5, -0.5]))
    assert total[0].tolist() == pytest.approx([0.0, 0.8, 0.0, -0.8, 0.0], abs=1e-12)


def test_rlcsd_selects_and_weighs():
    slot: ContrastiveCredit = method_of("rlcsd").credit
    assert slot.contexts() == (Sibling(), *(Sibling(correct=False, number=k) for k in range(4)))
    batch = signals([1.0, 0.0], [0, 0], [2, 2])
    batch.teachers = [view([True, True], [-1.0, -1.0], [-1.0, -1.0]), view([True, False], [-1.0, -1.5], [0.0, 0.0])]
    credited = slot(torch.tensor([0.5, -0.5], dtype=F64), batch)
    assert credited.advantage_BT.tolist() == [[0.5, pytest.approx(1.0)], [-0.5, -0.5]]
    assert credited.select_BT.tolist() == [[False, True], [False, False]]
    weight = token_weights(batch.mask_BT, "token", 9, credited.select_BT, 3.0)
    # of two rollouts: the first has one token of each kind, the second two unselected ones
    assert weight.tolist() == [[0.5, 1.5], [0.25, 0.25]]
