"""The trainer's forward path: packed rows equal padded ones, chunked logits equal whole ones, in values and in gradients."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlrt.execution.build import build_learner
from rlrt.methods.entropy import entropy
from rlrt.model import forward, packed
from rlrt.model.forward import (
    Row,
    log_probabilities,
    micro_batches,
    over_tokens,
    padded_batches,
    plain_hidden,
    response_hidden,
    response_logp,
    score,
)
from rlrt.model.paths import choose
from tests.helpers import METHODS, settings
from tests.training.test_update import close, gradient, world


def ragged_rows(count: int = 14, seed: int = 0) -> list[Row]:
    """Rows of five prompts of several lengths, their siblings not side by side; responses of 1 to 40 tokens."""
    draw = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [draw.randrange(3, 110) for _ in range(n)]

    prompts = [tokens(n) for n in (1, 7, 7, 12, 30)]
    lengths = [1, 40, 2, 17]
    return [Row(prompts[i % 5], tokens(lengths[i % 4] if i < 8 else draw.randrange(1, 41))) for i in range(count)]


@pytest.fixture
def model():
    return build_learner(settings()).policy.model


def grads(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_packed_rows_equal_padded_ones_in_values_and_gradients(model):
    rows = ragged_rows()
    assert packed.enabled(model)
    values = [f(model, rows) for f in (response_hidden, plain_hidden)]
    assert values[0].shape == (sum(len(r.response_ids) for r in rows), model.config.hidden_size)
    assert torch.allclose(*values, atol=2e-5)
    weight = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(0))
    one, other = (grads(model, (f(model, rows) * weight).sum()) for f in (response_hidden, plain_hidden))
    assert close(one, other)


@pytest.mark.parametrize("overrides", [["model.lora=4"], ["model.gradient_checkpointing=true"], ["dtype=bfloat16"]])
def test_packed_rows_equal_padded_ones_with(overrides):
    """Adapters, recomputed activations and autocast are the model's own in both."""
    model = build_learner(settings(*overrides)).policy.model
    for name, p in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(1))
    rows = ragged_rows()
    values = [f(model, rows) for f in (response_hidden, plain_hidden)]
    loose = 0.25 if "dtype=bfloat16" in overrides else 2e-5
    assert torch.allclose(*values, atol=loose)
    one, other = (grads(model, f(model, rows).square().mean()) for f in (response_hidden, plain_hidden))
    assert one.keys() == other.keys()
    assert close(one, other, 0.1 if "dtype=bfloat16" in overrides else 1e-5)


def test_a_model_with_windows_takes_the_plain_path():
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=112, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, sliding_window=8,
        num_key_value_heads=1,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    assert choose(model).attention == "plain"
    rows = ragged_rows()
    logp, _ = score(model, rows, 1.0, 200, 40)
    with torch.no_grad():
        for i, row in enumerate(rows):
            ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
            whole = model(ids).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
            expected = whole.gather(-1, torch.tensor(row.response_ids)[:, None])[:, 0]
            assert torch.allclose(logp[i, : len(row.response_ids)], expected, atol=1e-5)


@pytest.mark.parametrize("elements", [1, 112 * 7, 112 * 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logits_equal_whole_ones_in_values_and_gradients(model, elements, temperature):
    rows = ragged_rows()
    token_N = torch.cat([torch.tensor(r.response_ids) for r in rows])

    def compute(logp_CV, where):
        return logp_CV.gather(-1, token_N[where, None])[:, 0], entropy(logp_CV)

    def whole():
        return compute(response_logp(model, rows, temperature), slice(0, len(token_N)))

    def chunked():
        return over_tokens(model, response_hidden(model, rows), temperature, compute, elements)

    for a, b in zip(chunked(), whole(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    weight = torch.randn(len(token_N), generator=torch.Generator().manual_seed(0))
    one, other = (grads(model, (f()[0] * weight).sum() + f()[1].mean()) for f in (chunked, whole))
    assert close(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_chunks_do_not_change_the_gradient_of_any_method(name, monkeypatch):
    learner, rollouts, _ = world(f"method={name}")
    whole = gradient(learner, rollouts)
    monkeypatch.setattr(forward, "CHUNK_ELEMENTS", {"cpu": 112 * 5, "cuda": 0})
    other, _, _ = world(f"method={name}")
    assert close(gradient(other, rollouts), whole)


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_logits_are_never_held_whole(model):
    rows = [Row([1, 20, 109], [5] * 60)] * 20
    chunk, whole = 112 * 10, 112 * 1200

    def compute(logp_CV, where):
        return (entropy(logp_CV),)

    hidden = response_hidden(model, rows).detach().requires_grad_()
    for elements, bound in ((chunk, whole), (whole, None)):
        with Largest() as seen:
            over_tokens(model, hidden, 1.0, compute, elements)[0].sum().backward()
        if bound is None:
            assert seen.elements == whole  # the test would see it
        else:
            assert seen.elements == 1200 * model.config.hidden_size < bound


def computed(model, rows):
    """Tokens that a layer's linear maps see."""
    seen = []
    layer = model.base_model.layers[0].mlp
    handle = layer.register_forward_hook(lambda m, i, o: seen.append(o.shape[0] * o.shape[1]))
    try:
        with torch.no_grad():
            response_hidden(model, rows)
    finally:
        handle.remove()
    return sum(seen)


def test_a_prompt_is_run_once_for_its_group_and_nothing_is_padded(model):
    """Lengths 10..500, groups of 8: every computed token is a real one."""
    draw = random.Random(0)
    rows = [Row([1, 20 + g, 109], [5] * draw.randrange(10, 501)) for g in range(4) for _ in range(8)]
    needed = 4 * 3 + sum(len(r.response_ids) - 1 for r in rows)
    assert computed(model, rows) == needed


def test_attention_blocks_hold_similar_lengths():
    length = torch.tensor([0, 500, 10, 301, 12, 299, 500])
    sets = [[int(length[i]) for i in s] for s in packed.similar(length, 0, 7)]
    assert sets == [[500, 500, 301], [299], [12, 10]]


def test_micro_batches_hold_no_more_tokens_than_the_budget(model):
    rows = ragged_rows(40, seed=3)
    batches = micro_batches(model, rows, 60)
    assert sorted(i for b in batches for i in b) == list(range(40))
    assert max(len(b) for b in batches) > 1
    for batch in batches:
        assert len(batch) == 1 or computed(model, [rows[i] for i in batch]) <= 60
    assert micro_batches(model, rows, 10**6) == [sorted(range(40), key=lambda i: (i % 5, i))]


def test_padded_batches_keep_to_the_budget():
    lengths = [5, 9, 3, 9, 2, 30, 1]
    batches = padded_batches(lengths, 20)
    assert sorted(i for b in batches for i in b) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 20


def test_scores_do_not_depend_on_batch_or_neighbours(model):
    rows = [Row([1, 20, 109, 6, 7, 8, 111], [6, 105, 7]), Row([1, 20, 109], [5] * 20), Row([1], [9])]
    logp, spread = score(model, rows, 1.0, 1000, 20)
    for i, row in enumerate(rows):
        alone, alone_spread = score(model, [row], 1.0, 1000, 20)
        assert torch.allclose(logp[i], alone[0], atol=1e-5)
        assert torch.allclose(spread[i], alone_spread[0], atol=1e-5)
        assert (logp[i, len(row.response_ids) :] == 0).all()


def test_temperature_divides_the_logits(model):
    row = Row([1, 20, 109, 6, 7, 8, 111], [6, 105, 7])
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    with torch.no_grad():
        expected = (model(ids).logits[0, 6:9].float() / 0.5).log_softmax(-1)
        assert torch.allclose(response_logp(model, [row], 0.5), expected, atol=1e-5)
        assert torch.allclose(log_probabilities(model, plain_hidden(model, [row]), 0.5), expected, atol=1e-5)


def test_generate_is_still_transformers_own(model):
    """The packed attention stands aside where nothing is packed."""
    from rlrt.model.load import load

    other, _ = load("embedded", None, "eager")
    ids = torch.tensor([[1, 20, 109, 6, 7, 8, 111]])
    ours, plain = (m.generate(ids, max_new_tokens=12, do_sample=False) for m in (model, other))
    assert not packed.enabled(other)
    assert ours.tolist() == plain.tolist()
