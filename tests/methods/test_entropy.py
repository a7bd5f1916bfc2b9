from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.entropy import EntropyBonus, entropy
from rlrt.methods.signals import Distributions

F64 = torch.float64


def test_entropy_by_hand():
    logp = torch.log(torch.tensor([[0.5, 0.25, 0.25]], dtype=F64))
    # .5 log 2 + 2 * .25 log 4 = 1.5 log 2
    assert float(entropy(logp)) == pytest.approx(1.5 * math.log(2), abs=1e-12)


def test_gradient_is_exact():
    logits = torch.tensor([[0.3, -1.0, 0.7, 0.0]], dtype=F64, requires_grad=True)
    entropy(logits.log_softmax(-1)).sum().backward()
    p = logits.detach().softmax(-1)
    h = float(entropy(p.log()))
    expected = -p * (p.log() + h)  # dH/dlogit_j = -p_j (log p_j + H)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected, atol=1e-12)


def test_bonus_and_its_adaptation():
    bonus = EntropyBonus(entropy_coef=0.01, entropy_target=0.5, entropy_rate=0.1)
    logp = torch.log(torch.tensor([[0.5, 0.5]], dtype=F64))
    value = bonus(Distributions(logp, None, torch.ones(1, dtype=F64)))
    assert float(value) == pytest.approx(-0.01 * math.log(2), abs=1e-15)
    bonus.observe(0.3)
    assert bonus.coefficient == pytest.approx(0.01 + 0.1 * 0.2, abs=1e-15)
    bonus.observe(10.0)
    assert bonus.coefficient == 0.0
    other = EntropyBonus(entropy_coef=0.01, entropy_target=0.5, entropy_rate=0.1)
    other.load_state_dict(bonus.state_dict())
    assert other.coefficient == 0.0


def test_without_target_the_coefficient_stays():
    bonus = EntropyBonus(entropy_coef=0.01, entropy_target=None, entropy_rate=0.1)
    bonus.observe(0.0)
    assert bonus.coefficient == 0.01
    assert bonus.state_dict() == {}
