"""Logits of a bfloat16 model are float32 sums of bfloat16 products, in the trainer and in both samplers."""

from __future__ import annotations

import pytest
import torch

from rlrt.engines.cached import CachedDecoder
from rlrt.execution.build import build_learner
from rlrt.model.dense import DenseDecoder
from rlrt.model.forward import log_probabilities
from rlrt.model.head import Float32Product, head_logits, product
from tests.helpers import settings

HALF = torch.bfloat16


def wide(*shape, seed=0):
    """Values whose products are as large as a real model's logits."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def test_the_sum_is_kept_in_float32():
    hidden, weight = wide(16, 64).to(HALF), wide(100, 64, seed=1).to(HALF)
    exact = hidden.double() @ weight.double().t()
    off = (product(hidden, weight).double() - exact).abs().max()
    rounded = ((hidden @ weight.t()).double() - exact).abs().max()
    assert product(hidden, weight).dtype == torch.float32
    assert off < 1e-4 < 1e-2 < rounded


def test_float32_is_the_plain_product_to_the_bit():
    hidden, weight = wide(3, 8), wide(5, 8, seed=1)
    assert torch.equal(product(hidden, weight), torch.nn.functional.linear(hidden, weight))


def test_the_gradient_of_the_cards_product(monkeypatch):
    """``torch.mm`` has no ``out_dtype`` on the CPU; the same sum stands in for it. The backward pass is the card's."""
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: mm(a.to(out_dtype), b.to(out_dtype)))
    hidden, weight = (x.to(HALF).requires_grad_() for x in (wide(6, 8), wide(10, 8, seed=1)))
    upstream = wide(6, 10, seed=2)
    Float32Product.apply(hidden, weight).backward(upstream)
    got = hidden.grad.float(), weight.grad.float()
    plain = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    (plain[0] @ plain[1].t()).backward(upstream)
    for mine, theirs in zip(got, plain, strict=True):
        assert (mine - theirs.grad).abs().max() / theirs.grad.abs().max() < 2**-6  # three roundings to 8 bits


@pytest.fixture(scope="module")
def half():
    return build_learner(settings("dtype=bfloat16")).policy.model


def test_trainer_and_samplers_have_one_output_layer(half):
    prompts, counts = [[3, 4, 5], [6, 7, 8, 9]], [1, 1]
    with torch.no_grad():
        quick, plain = (decoder(half).start(prompts, counts) for decoder in (DenseDecoder, CachedDecoder))
    assert quick.dtype == plain.dtype == torch.float32
    assert (quick - plain).abs().max() < 0.1  # the layers before it still compute in bfloat16, each in its own order
    hidden = wide(4, half.config.hidden_size)
    logits = head_logits(half, hidden)
    weight = half.get_output_embeddings().weight
    assert torch.equal(logits, hidden.to(HALF).float() @ weight.to(HALF).float().t())
    assert torch.equal(log_probabilities(half, hidden, 1.0), logits.log_softmax(-1))


def test_the_output_layer_learns(half):
    hidden = wide(4, half.config.hidden_size).requires_grad_()
    head_logits(half, hidden).logsumexp(-1).sum().backward()
    weight = half.get_output_embeddings().weight
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert float(weight.grad.abs().max()) > 0
    assert float(hidden.grad.abs().max()) > 0
    weight.grad = None
