from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.aggregate import kl_penalty, token_weights

MASK = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", [[1 / 4] * 3, [1 / 4, 0, 0]]),  # 4 tokens in all
        ("sequence", [[1 / 6] * 3, [1 / 2, 0, 0]]),  # 1 / (2 rollouts * own length)
        ("constant", [[1 / 10] * 3, [1 / 10, 0, 0]]),  # 1 / (2 rollouts * 5 tokens)
    ],
)
def test_weights_by_hand(aggregation, expected):
    result = token_weights(MASK, aggregation, 5)
    assert result.tolist() == [pytest.approx(row, abs=1e-15) for row in expected]


def test_selected_and_unselected_parts_are_means_of_their_own():
    select = torch.tensor([[True, False, False], [True, False, False]])
    # rollout 1: 1 selected, 2 unselected tokens; rollout 2: 1 selected, its unselected part is empty and omitted
    result = token_weights(MASK, "token", 5, select)
    assert result.tolist() == [pytest.approx([1 / 2, 1 / 4, 1 / 4]), pytest.approx([1 / 2, 0, 0])]


def test_kl_estimators_by_hand():
    # pi = .5, ref = .25: r = log(.25/.5) = -log 2
    logp, reference = (
        torch.log(torch.tensor([0.5], dtype=torch.float64)),
        torch.log(torch.tensor([0.25], dtype=torch.float64)),
    )
    two = math.log(2)
    assert float(kl_penalty(logp, reference, "k1")) == pytest.approx(two, abs=1e-12)
    assert float(kl_penalty(logp, reference, "k2")) == pytest.approx(two * two / 2, abs=1e-12)
    assert float(kl_penalty(logp, reference, "k3")) == pytest.approx(0.5 - 1 + two, abs=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_kl_gradient_in_expectation(estimator):
    """Over all tokens of a small policy: E[grad of the estimate] is the gradient of KL(pi || ref)."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, generator=g).requires_grad_()
    reference = torch.randn(7, dtype=torch.float64, generator=g).log_softmax(-1)
    logp = logits.log_softmax(-1)
    expected = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), logits, retain_graph=True)[0]
    estimate = (logp.exp().detach() * kl_penalty(logp, reference, estimator)).sum()
    assert torch.allclose(torch.autograd.grad(estimate, logits)[0], expected, atol=1e-12)
    assert expected.abs().max() > 0.01
