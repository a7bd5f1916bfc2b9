"""Decoding on the weights themselves equals transformers' own model and cache."""

from __future__ import annotations

import pytest
import torch

from rlrt.engines.cached import CachedDecoder
from rlrt.engines.hf import HfEngine
from rlrt.execution.build import build_learner
from rlrt.model.dense import DenseDecoder
from rlrt.model.paths import decodes_quickly
from tests.engines.test_hf import RAGGED, prompts, sampled
from tests.helpers import settings


def run(decoder, given, counts, tokens, keep_at, keep):
    """Logits after each token, some rows dropped on the way."""
    with torch.inference_mode():
        found = [decoder.start(given, counts)]
        for t, token in enumerate(tokens):
            if t == keep_at:
                decoder.keep(keep)
            found.append(decoder.step(token if t < keep_at else token[keep]))
    return [x.log_softmax(-1) for x in found]


@pytest.mark.parametrize("overrides", [[], ["model.lora=4"]])
def test_the_same_log_probabilities_as_with_transformers_cache(overrides):
    """Ragged prompts, 90 tokens (the room grows twice), rows dropped on the way."""
    learner = build_learner(settings(*overrides))
    model = learner.policy.model
    for name, p in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(1))
    given = prompts(learner, *RAGGED)
    tokens = torch.randint(3, 110, (90, 9), generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([0, 2, 3, 7])
    quick, plain = (run(d(model), given, [3, 2, 4], tokens, 40, keep) for d in (DenseDecoder, CachedDecoder))
    for a, b in zip(quick, plain, strict=True):
        assert a.shape == b.shape
        chosen = b.exp() > 1e-6  # far below that a log-probability is a difference of large logits
        assert torch.allclose(a[chosen], b[chosen], atol=5e-5)


def test_rollouts_are_those_of_the_reference():
    learner = build_learner(settings())
    given, seeds = prompts(learner, *RAGGED), [[1, 2, 3, 4], [5], [6, 7, 8]]
    engine = HfEngine(max_new_tokens=40, temperature=1.0, max_rows=512, grade_truncated=False)
    engine.load(learner.policy.model, learner.policy.stop_ids, 0)
    quick = sampled(engine, given, seeds)
    learner.policy.model.config._attn_implementation = "sdpa"
    assert not decodes_quickly(learner.policy.model)
    plain = sampled(engine, given, seeds)
    for group, other in zip(quick, plain, strict=True):
        for g, o in zip(group, other, strict=True):
            assert g.token_ids == o.token_ids
            assert torch.allclose(g.logp_T, o.logp_T, atol=1e-5)
            assert torch.allclose(g.entropy_T, o.entropy_T, atol=1e-5)


def test_the_cache_is_no_larger_than_the_living_rows_need():
    learner = build_learner(settings())
    decoder = DenseDecoder(learner.policy.model)
    with torch.inference_mode():
        decoder.start(prompts(learner, *RAGGED), [20, 20, 20])
        for _ in range(100):
            decoder.step(torch.full((len(decoder.position),), 5))
        decoder.keep(torch.tensor([0, 1, 2]))
        decoder.step(torch.full((3,), 5))
    rows, _, room, _ = decoder.layers[0].keys.shape
    assert rows == 3
    assert decoder.column <= room <= decoder.column + 64


def test_what_leaves_the_engine_may_be_read_where_gradients_are_made():
    learner = build_learner(settings())
    engine = HfEngine(max_new_tokens=5, temperature=1.0, max_rows=512, grade_truncated=False)
    engine.load(learner.policy.model, learner.policy.stop_ids, 0)
    generation = sampled(engine, prompts(learner, RAGGED[0]), [[1]])[0][0]
    weight = torch.ones((), requires_grad=True)
    (generation.logp_T * weight).sum().backward()
    assert weight.grad is not None
