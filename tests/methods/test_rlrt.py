from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.rlrt import TeacherWeight, scheduled_lambda, shuffled, teacher_weight
from tests.helpers import signals

F64 = torch.float64


def credit(**changes) -> TeacherWeight:
    keys = {
        "lambda_init": 0.5,
        "lambda_schedule": "constant",
        "lambda_decay_steps": 10,
        "epsilon_w": 0.5,
        "gate": "correct",
        "direction": "reversed",
        "shuffle_weights": False,
        "mask_special_tokens": False,
        "gap": "whole",
    }
    return TeacherWeight(**(keys | changes))


def two_rollouts(**more):
    # D of the correct rollout: log(.5/.4) = .2231, log(.2/.8) = -1.3863; of the wrong one: log(.9/.3) = 1.0986, 0
    student = torch.log(torch.tensor([[0.5, 0.2], [0.9, 0.5]], dtype=F64))
    teacher = torch.log(torch.tensor([[0.4, 0.8], [0.3, 0.5]], dtype=F64))
    return signals([1.0, 0.0], [0, 0], [2, 2], student, teacher, **more)


ADVANTAGE = torch.tensor([2.0, -1.0], dtype=F64)


def test_rlrt_by_hand():
    result = credit()(ADVANTAGE, two_rollouts())
    # w = e^D = 1.25 and 0.25 -> clipped to 0.5; A (0.5 + 0.5 w) = 2 * 1.125 and 2 * 0.75; the wrong one is untouched
    assert result.advantage_BT.flatten().tolist() == pytest.approx([2.25, 1.5, -1.0, -1.0], abs=1e-12)
    assert result.metrics["rlrt/gap_mean"] == pytest.approx((math.log(1.25) + math.log(0.25)) / 2, abs=1e-12)
    assert result.metrics["rlrt/gap_abs_mean"] == pytest.approx((math.log(1.25) - math.log(0.25)) / 2, abs=1e-12)
    assert result.metrics["rlrt/self_driven_share"] == 0.5
    assert result.metrics["rlrt/weight_mean"] == pytest.approx((1.25 + 0.5) / 2, abs=1e-12)
    assert result.metrics["rlrt/weight_clipped_share"] == 0.5


def test_rlsd_by_hand():
    result = credit(direction="forward", gate="all", epsilon_w=0.2)(ADVANTAGE, two_rollouts())
    # correct: w = e^{-D} = 0.8 and 4 -> 1.2; wrong: w = e^{+D} = 3 -> 1.2 and 1
    expected = [2 * (0.5 + 0.5 * 0.8), 2 * (0.5 + 0.5 * 1.2), -(0.5 + 0.5 * 1.2), -1.0]
    assert result.advantage_BT.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_ungated_rlrt_turns_the_sign_on_wrong_rollouts():
    result = credit(gate="all")(ADVANTAGE, two_rollouts())
    # eq. 6 with sign(A) = -1: w = e^{-1.0986} = 1/3 -> 0.5
    assert result.advantage_BT[1].tolist() == pytest.approx([-0.75, -1.0], abs=1e-12)


def test_without_teacher_the_advantage_is_plain():
    result = credit()(ADVANTAGE, two_rollouts(has_teacher_B=[False, True]))
    assert result.advantage_BT.flatten().tolist() == [2.0, 2.0, -1.0, -1.0]


def test_special_tokens_can_be_left_out():
    given = two_rollouts()
    given.special_BT[0, 1] = True
    result = credit(mask_special_tokens=True)(ADVANTAGE, given)
    assert result.advantage_BT[0].tolist() == pytest.approx([2.25, 2.0], abs=1e-12)


def test_shuffling_leaves_special_tokens_out_too():
    g = torch.Generator().manual_seed(0)
    student, teacher = (-torch.rand(1, 6, dtype=F64, generator=g) for _ in range(2))
    given = signals([1.0], [0], [6], student, teacher)
    given.special_BT[0, 5] = True
    changes = {"lambda_init": 1.0, "mask_special_tokens": True, "epsilon_w": 1.0}
    straight = credit(**changes)(torch.ones(1, dtype=F64), given).advantage_BT[0]
    mixed = credit(shuffle_weights=True, **changes)(torch.ones(1, dtype=F64), given).advantage_BT[0]
    assert mixed[5] == straight[5] == 1.0
    assert sorted(mixed[:5].tolist()) == sorted(straight[:5].tolist())
    assert mixed.tolist() != straight.tolist()


def test_a_mean_of_nothing_is_not_logged():
    result = credit()(ADVANTAGE, two_rollouts(has_teacher_B=[False, False]))
    assert result.metrics == {"rlrt/lambda": 0.5}


def test_teacher_is_wanted_only_where_it_can_change_the_weight():
    given = signals([1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1])
    advantage = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=F64)
    assert credit().teacher_rows(advantage, given).tolist() == [True, False, False, False]
    assert credit(gate="all").teacher_rows(advantage, given).tolist() == [True, False, True, False]
    assert not credit(lambda_init=0.0).teacher_rows(advantage, given).any()


def test_lambda_schedule():
    assert scheduled_lambda(0.5, "constant", 10, 99) == 0.5
    assert [scheduled_lambda(0.5, "linear", 4, step) for step in (1, 3, 5, 9)] == [0.5, 0.25, 0.0, 0.0]


def test_gap_is_clamped_before_exp():
    weight = teacher_weight(torch.tensor([[1e4]], dtype=F64), torch.ones(1, dtype=F64), 1.0, True)
    assert weight.tolist() == [[2.0]]
    assert torch.isfinite(teacher_weight(torch.tensor([[-1e30]], dtype=F64), torch.ones(1, dtype=F64), 1.0, True)).all()


def test_shuffle_keeps_each_rollouts_weights():
    values = torch.arange(12, dtype=F64).reshape(2, 6)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    result = shuffled(values, mask, torch.tensor([1, 2]))
    assert sorted(result[0].tolist()) == values[0].tolist()
    assert sorted(result[1, :4].tolist()) == values[1, :4].tolist()
    assert result[1, 4:].tolist() == values[1, 4:].tolist()
    assert result[0].tolist() != values[0].tolist()
    again = shuffled(values.flip(0), mask.flip(0), torch.tensor([2, 1]))
    assert torch.equal(again.flip(0), result)  # a rollout's order is its own seed's, wherever it stands
