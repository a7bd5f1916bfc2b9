from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.sdpo import Distillation, divergence, kl, with_tail
from rlrt.methods.signals import Distributions

F64 = torch.float64


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.log(torch.tensor(rows, dtype=F64))


def test_kl_by_hand():
    # .5 log(.5/.25) + .5 log(.5/.75) = .5 log 2 + .5 log(2/3)
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(kl(logs([0.5, 0.5]), logs([0.25, 0.75]))) == pytest.approx(expected, abs=1e-12)
    assert float(kl(logs([1.0, 0.0]), logs([0.5, 0.5]))) == pytest.approx(math.log(2), abs=1e-12)


def test_the_ends_are_the_two_kls():
    student, teacher = logs([0.7, 0.2, 0.1]), logs([0.3, 0.3, 0.4])
    assert torch.equal(divergence(student, teacher, 0.0), kl(teacher, student))
    assert torch.equal(divergence(student, teacher, 1.0), kl(student, teacher))


def test_jensen_shannon_by_hand():
    student, teacher = logs([0.8, 0.2]), logs([0.4, 0.6])
    mixture = [0.6, 0.4]
    expected = 0.5 * (0.4 * math.log(0.4 / 0.6) + 0.6 * math.log(0.6 / 0.4))
    expected += 0.5 * (0.8 * math.log(0.8 / mixture[0]) + 0.2 * math.log(0.2 / mixture[1]))
    assert float(divergence(student, teacher, 0.5)) == pytest.approx(expected, abs=1e-12)


def test_the_weight_of_the_mixture_is_the_teachers():
    student, teacher = logs([0.8, 0.2]), logs([0.4, 0.6])
    a = 0.25
    m = [(1 - a) * 0.8 + a * 0.4, (1 - a) * 0.2 + a * 0.6]
    expected = a * (0.4 * math.log(0.4 / m[0]) + 0.6 * math.log(0.6 / m[1]))
    expected += (1 - a) * (0.8 * math.log(0.8 / m[0]) + 0.2 * math.log(0.2 / m[1]))
    assert float(divergence(student, teacher, a)) == pytest.approx(expected, abs=1e-12)


def test_tail_holds_the_rest():
    logp = logs([0.5, 0.3, 0.15, 0.05])
    result = with_tail(logp, torch.tensor([[0, 1]]))
    assert result.exp()[0].tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-12)
    full = with_tail(logs([0.6, 0.4]), torch.tensor([[0, 1]]))
    assert torch.isfinite(full).all()  # no rest: kept at 1e-7
    assert float(full.exp()[0, 2]) == pytest.approx(1e-7, rel=1e-6)


def test_support_is_the_students():
    # the student's top token is 0, the teacher's is 2: with k = 1 the buckets are {0} and {1, 2}
    loss = Distillation(distill_alpha=0.0, distill_top_k=1, distill_ratio_cap=2.0)
    student, teacher = logs([0.7, 0.2, 0.1]), logs([0.2, 0.1, 0.7])
    value = loss(Distributions(student, teacher, torch.ones(1, dtype=F64)))
    expected = 0.2 * math.log(0.2 / 0.7) + 0.8 * math.log(0.8 / 0.3)
    assert float(value) == pytest.approx(expected, abs=1e-12)


def test_ratio_is_capped():
    loss = Distillation(distill_alpha=1.0, distill_top_k=0, distill_ratio_cap=2.0)
    student, teacher = logs([0.5, 0.5], [0.5, 0.5]), logs([0.25, 0.75], [0.25, 0.75])
    one, capped = loss(Distributions(student, teacher, torch.tensor([1.0, 5.0], dtype=F64))).tolist()
    assert capped == pytest.approx(2 * one, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_no_gradient_reaches_the_teacher(alpha):
    student = torch.randn(3, 5, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(3, 5, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    divergence(student.log_softmax(-1), teacher.log_softmax(-1), alpha).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_distillation_identity_in_an_enumerable_policy():
    """-grad KL(S || T) = E_{y ~ S}[(log T(y) - log S(y)) grad log S(y)], over all sequences of a two-token policy.

    The policy has 3 tokens and logits that depend on the token before; KL is over whole sequences, which is the sum over
    positions of the expected token KL: SDPO's dense loss at alpha = 1.
    """
    g = torch.Generator().manual_seed(3)
    first, second = (torch.randn(*shape, dtype=F64, generator=g).requires_grad_() for shape in ((3,), (3, 3)))
    t_first, t_second = (torch.randn(*shape, dtype=F64, generator=g) for shape in ((3,), (3, 3)))

    def sequence_logp(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.log_softmax(-1)[:, None] + b.log_softmax(-1)

    student, teacher = sequence_logp(first, second), sequence_logp(t_first, t_second)
    dense = divergence(first.log_softmax(-1)[None], t_first.log_softmax(-1)[None], 1.0).sum()
    at_second = divergence(second.log_softmax(-1), t_second.log_softmax(-1), 1.0)
    total = dense + (first.softmax(-1) * at_second).sum()
    left = torch.autograd.grad(total, (first, second), retain_graph=True)
    advantage = (teacher - student).detach()
    expected = (student.exp().detach() * advantage * student).sum()
    right = torch.autograd.grad(expected, (first, second))
    for a, b in zip(left, right, strict=True):
        assert torch.allclose(-a, b, atol=1e-12)
    assert left[0].abs().max() > 1e-3
