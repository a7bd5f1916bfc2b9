"""OPSD and SRPO by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.opsd import ClippedDistillation, clipped_kl
from rlrt.methods.sdpo import kl
from rlrt.methods.signals import Distributions, TeacherSignal
from rlrt.methods.srpo import RoutedDistillation, confidence_weights
from tests.helpers import method_of, signals

F64 = torch.float64


def logs(*rows):
    return torch.log(torch.tensor(rows, dtype=F64))


def test_each_entry_is_clipped_before_the_sum():
    # p_T log(p_T / p_S): .7 log(.7/.5) = .2355 -> .05; .2 log(.2/.3) = -.0811; .1 log(.1/.2) = -.0693
    student, teacher = logs([0.5, 0.3, 0.2]), logs([0.7, 0.2, 0.1])
    expected = 0.05 + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    assert float(clipped_kl(student, teacher, 0.05)) == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(clipped_kl(student, teacher, 100.0), kl(teacher, student), atol=1e-12)
    assert float(clipped_kl(logs([0.5, 0.5]), logs([1.0, 0.0]), 100.0)) == pytest.approx(math.log(2), abs=1e-12)


def test_a_clipped_entry_has_no_gradient_and_the_teacher_none():
    student = torch.tensor([[0.3, 0.1, -0.2]], dtype=F64).requires_grad_()
    teacher = torch.tensor([[2.0, 0.0, 0.0]], dtype=F64).requires_grad_()
    loss = ClippedDistillation(distill_point_clip=1e-9, distill_token_clip=None)
    value = loss(Distributions(student.log_softmax(-1), teacher.log_softmax(-1), torch.ones(1, dtype=F64)))
    value.sum().backward()
    assert teacher.grad is None
    p, t = student.detach().softmax(-1)[0], teacher.detach().softmax(-1)[0]
    # left are the entries with p_T < p_S (the last two): the gradient of -sum_left p_T log p_S
    left = torch.tensor([0.0, 1.0, 1.0], dtype=F64) * t
    assert torch.allclose(student.grad[0], left.sum() * p - left, atol=1e-12)


def test_a_tokens_loss_may_be_bounded_too():
    loss = ClippedDistillation(distill_point_clip=100.0, distill_token_clip=0.01)
    value = loss(Distributions(logs([0.5, 0.5]), logs([0.9, 0.1]), torch.ones(1, dtype=F64)))
    assert value.tolist() == [0.01]


def test_confidence_weights_have_mean_one_over_the_routed_tokens():
    # exp(-0) = 1, exp(-log 3) = 1/3 of two tokens: mean 2/3, so 1.5 and .5
    entropy, mask = torch.tensor([[0.0, math.log(3), 5.0]], dtype=F64), torch.tensor([[True, True, False]])
    assert confidence_weights(entropy, mask, 1.0)[0].tolist() == pytest.approx([1.5, 0.5, 0.0], abs=1e-12)
    assert confidence_weights(entropy, mask, 0.0)[0].tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-12)


def test_confidence_weights_stay_finite_however_sure_the_measure():
    """exp(-63 * 12) is 0 in float64; what counts is 12 against 12 + log(3) / 63: 1 and 1/3 again, so 1.5 and .5."""
    entropy, mask = torch.tensor([[12.0, 12.0 + math.log(3) / 63, 0.0]], dtype=F64), torch.tensor([[True, True, False]])
    assert confidence_weights(entropy, mask, 63.0)[0].tolist() == pytest.approx([1.5, 0.5, 0.0], abs=1e-9)
    assert confidence_weights(entropy, mask, 1e300)[0].tolist() == [2.0, 0.0, 0.0]


def test_srpo_routes_wrong_rollouts_with_a_teacher_and_leaves_the_rest_to_grpo():
    method = method_of("srpo")
    batch = signals([1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1], [2, 2, 2, 2])
    wanted = method.teacher_rows(method.advantage(batch), batch)
    assert wanted.tolist() == [False, True, True, True]
    has = torch.tensor([False, True, False, False])  # group 1 has no correct sibling to show
    assert method.left_to_terms(has, batch).tolist() == [False, True, False, False]
    (term,) = method.auxiliary
    assert isinstance(term, RoutedDistillation)
    view = TeacherSignal(has, batch.logp_BT, torch.ones_like(batch.logp_BT))
    assert term.token_weights(view, batch.mask_BT & has[:, None]).sum() == pytest.approx(2.0)
    assert method_of("sd").left_to_terms(has, batch).tolist() == [False] * 4
    everyone = torch.ones_like(
        has
    )  # the correct rollout has a teacher for another slot's sake: it stays with the policy loss
    assert method.left_to_terms(everyone, batch).tolist() == [False, True, True, True]
