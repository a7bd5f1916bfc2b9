"""The output layer: float32 sums of bfloat16 products in trainer and samplers, and one function over all chunks of tokens."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlrt.engines.cached import CachedDecoder
from rlrt.execution.build import build_learner
from rlrt.methods.entropy import entropy
from rlrt.model import head
from rlrt.model.dense import DenseDecoder
from rlrt.model.forward import log_probabilities, over_tokens
from rlrt.model.head import OverTokens, Task, output_layer, product
from rlrt.model.lora import add_adapters
from rlrt.training.passes import forward_pass
from tests.helpers import settings
from tests.training.test_update import world

HALF = torch.bfloat16


def wide(*shape, seed=0):
    """Values whose products are as large as a real model's logits."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


class Toy(torch.nn.Module):
    """A model that is an output layer of 9 tokens on 4 numbers."""

    def __init__(self, dtype=torch.float64, bias=True, layer=None):
        super().__init__()
        torch.manual_seed(0)
        self.lm_head = layer or torch.nn.Linear(4, 9, bias=bias, dtype=dtype)
        self.config = SimpleNamespace(vocab_size=9)

    def get_output_embeddings(self):
        return self.lm_head


TOKEN_N = torch.arange(7) % 9
TARGET_NV = torch.randn(7, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64).log_softmax(-1)


def compute(logp_CV, where):
    """A log-probability, an entropy with gradient, one without, and a divergence that some tokens lack."""
    logp_C = logp_CV.gather(-1, TOKEN_N[where, None])[:, 0]
    has_C = torch.arange(7)[where] > 3
    divergence = (logp_CV[has_C].exp() * (logp_CV[has_C] - TARGET_NV[where][has_C].to(logp_CV.dtype))).sum(-1)
    if not bool(has_C.any()):
        return logp_C, entropy(logp_CV), entropy(logp_CV.detach()), torch.zeros_like(logp_C)
    return (
        logp_C,
        entropy(logp_CV),
        entropy(logp_CV.detach()),
        torch.zeros_like(logp_C).masked_scatter(has_C, divergence),
    )


def total(columns):
    """A sum in which every token and every result has a weight of its own."""
    return sum(((i + 1) * torch.linspace(1, 2, len(x), dtype=x.dtype) * x).sum() for i, x in enumerate(columns))


def hidden_of(dtype=torch.float64, count=7):
    return (
        torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
    )


def gradients(model, hidden, columns):
    """Those of the hidden states and of every parameter that has one."""
    model.zero_grad(set_to_none=True)
    hidden.grad = None
    total(columns).backward()
    return [x.grad for x in (hidden, *model.parameters()) if x.grad is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_chunks_equal_the_whole_in_float64(size, temperature, bias):
    model, hidden = Toy(bias=bias), hidden_of()
    whole = compute(log_probabilities(model, hidden, temperature), slice(0, 7))
    expected = gradients(model, hidden, whole)
    columns = over_tokens(model, hidden, temperature, compute, 9 * size)
    for one, other in zip(columns, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    assert [x.requires_grad for x in columns] == [True, True, False, True]
    found = gradients(model, hidden, columns)
    assert len(found) == len(expected) == 2 + bias
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_the_gradient_is_the_difference_quotient():
    model, hidden = Toy(), hidden_of()
    inputs = [hidden, model.lm_head.weight, model.lm_head.bias]
    task = Task(compute, [slice(0, 3), slice(3, 7)], torch.float32, 0.7)

    def value(inputs):
        return total([x for x in OverTokens.apply(*inputs, task) if x.requires_grad])

    grads = torch.autograd.grad(value(inputs), inputs)
    for i, grad in enumerate(grads):
        along = torch.randn(grad.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        ends = [[x + step * along if j == i else x for j, x in enumerate(inputs)] for step in (1e-6, -1e-6)]
        above, below = (value(end).item() for end in ends)
        assert (above - below) / 2e-6 == pytest.approx(float((grad * along).sum()), rel=1e-6)


def test_one_token_by_hand():
    """Two words, weight rows 0 and 1, hidden 1: p = (1, e) / (1 + e); d logp_0 / dW = (1 - p_0, -p_1) = p_1 (1, -1)."""
    model = Toy(layer=torch.nn.Linear(1, 2, bias=False, dtype=torch.float64))
    model.config.vocab_size = 2
    model.lm_head.weight.data = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    (logp,) = over_tokens(model, hidden, 1.0, lambda logp_CV, where: (logp_CV[:, 0],))
    logp.backward(torch.tensor([3.0], dtype=torch.float64))
    p_1 = 0.7310585786300049
    assert model.lm_head.weight.grad.flatten().tolist() == pytest.approx([3 * p_1, -3 * p_1])
    assert hidden.grad.item() == pytest.approx(-3 * p_1)  # W_0 (1 - p_0) - W_1 p_1


def test_only_what_is_asked_for_has_a_gradient():
    frozen, hidden = Toy(), hidden_of()
    frozen.requires_grad_(False)
    expected = gradients(frozen, hidden, compute(log_probabilities(frozen, hidden, 1.0), slice(0, 7)))
    found = gradients(frozen, hidden, over_tokens(frozen, hidden, 1.0, compute, 18))
    assert len(found) == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    model, fixed = Toy(), hidden_of().detach()
    total(over_tokens(model, fixed, 1.0, compute, 18)).backward()
    assert model.lm_head.weight.grad is not None
    assert fixed.grad is None
    assert not any(x.requires_grad for x in over_tokens(frozen, fixed, 1.0, compute, 18))
    with torch.no_grad():
        assert not any(x.requires_grad for x in over_tokens(model, hidden, 1.0, compute, 18))


def test_no_tokens_give_empty_results():
    model, hidden = Toy(), hidden_of(count=0)
    (logp,) = over_tokens(model, hidden, 1.0, lambda logp_CV, where: (logp_CV[:, 0],))
    logp.sum().backward()
    assert logp.shape == (0,)
    assert not model.lm_head.weight.grad.any()


def test_an_adapted_head_runs_as_its_own_module():
    model = Toy(torch.float32)
    add_adapters(model, 2, 4.0, ["lm_head"], 0)
    assert not isinstance(model.lm_head, torch.nn.Linear)
    torch.nn.init.normal_(model.lm_head.lora_B["default"].weight)
    hidden = hidden_of(torch.float32)
    expected = gradients(model, hidden, compute(log_probabilities(model, hidden, 0.7), slice(0, 7)))
    found = gradients(model, hidden, over_tokens(model, hidden, 0.7, compute, 18))
    assert len(found) == 3  # of the hidden states, and of the adapter's two matrices
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [3, 7])
def test_another_tensor_with_a_gradient_is_refused(size):
    model, hidden, other = Toy(), hidden_of(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(AssertionError, match=r"reads another tensor with a gradient, of shape \(2,\)"):
        over_tokens(model, hidden, 1.0, lambda logp_CV, where: (logp_CV[:, 0] * other.square().sum(),), 9 * size)


def test_what_was_computed_is_freed_in_the_backward_pass():
    """So a teacher's hidden states and its cast weight are gone before the layers' backward pass."""

    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)

    def reading(logp_CV, where, held=held):
        return (logp_CV[:, 0],)

    (logp,) = over_tokens(Toy(), hidden_of(), 1.0, reading, 18)
    loss = logp.sum()
    del reading, held
    assert gone() is not None
    loss.backward(retain_graph=True)
    assert gone() is None
    with pytest.raises(AssertionError, match="runs once"):
        loss.backward()


class Casts(TorchDispatchMode):
    """Counts the casts of a tensor of one shape to bfloat16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        to = (kwargs or {}).get("dtype")
        if function is torch.ops.aten._to_copy.default and args[0].shape == self.shape and to is HALF:
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_the_weight_is_cast_once_in_each_direction():
    model = Toy(torch.float32)
    model.compute_dtype = HALF
    hidden = hidden_of(torch.float32)
    with Casts((9, 4)) as casts:
        columns = over_tokens(model, hidden, 1.0, compute, 9)
    assert casts.count == 1
    with casts:
        total(columns).backward()
    assert casts.count == 2
    with Casts((9, 4)) as casts, torch.no_grad():
        over_tokens(model, hidden, 1.0, compute, 9)
    assert casts.count == 1


def test_a_dense_terms_teacher_casts_its_weight_once_a_pass(monkeypatch):
    learner, _, batch = dense_batch()
    monkeypatch.setitem(head_elements(), "cpu", 112 * 5)
    with Casts((112, 64)) as casts:
        done = forward_pass(learner, batch, torch.arange(len(batch.rows)))
    assert casts.count == 2  # the student's forward pass, and the teacher
    with casts:
        done.term_N[0].sum().backward()
    assert casts.count == 3


def head_elements():
    from rlrt.model.forward import CHUNK_ELEMENTS

    return CHUNK_ELEMENTS


def dense_batch():
    from rlrt.training.batch import batch_of, signals_of

    learner, rollouts, _ = world("method=sd", "dtype=bfloat16")
    signals = signals_of(rollouts, 1, [])
    wanted = learner.method.teacher_rows(learner.method.advantage(signals), signals)
    batch = batch_of(learner, rollouts, signals, wanted)[0]
    assert bool(batch.has_teacher().any())
    return learner, rollouts, batch


def on_a_card(monkeypatch):
    """The card's products in bfloat16; ``out_dtype``, which the CPU lacks, by float32 sums. Returns what was called."""
    mm, called = torch.mm, []

    def product_of(a, b, out_dtype):
        called.append("mm")
        assert a.dtype == b.dtype == HALF
        return mm(a.to(out_dtype), b.to(out_dtype))

    def added(x, a, b, out_dtype, out):
        called.append("addmm")
        assert out is x
        assert a.dtype == b.dtype == HALF
        assert x.dtype == out_dtype == torch.float32
        return x.add_(mm(a.to(out_dtype), b.to(out_dtype)))

    monkeypatch.setattr(torch, "mm", product_of)
    monkeypatch.setattr(torch, "addmm", added)
    monkeypatch.setattr(head, "factor", lambda x, dtype: x.to(dtype) if dtype == HALF else x)
    return called


def test_the_cards_products(monkeypatch):
    """Float32 sums of bfloat16 products in all three places; the weight's gradient adds in place."""
    model, hidden = Toy(torch.float32, bias=False), hidden_of(torch.float32)
    model.compute_dtype = HALF
    with torch.no_grad():  # values that bfloat16 holds, so that only the gradient of the logits is rounded
        model.lm_head.weight.copy_(model.lm_head.weight.to(HALF))
        hidden.copy_(hidden.to(HALF))
    called = on_a_card(monkeypatch)
    found = gradients(model, hidden, over_tokens(model, hidden, 1.0, compute, 27))
    forward, backward = ["mm"] * 3, ["mm", "mm", "mm"] + ["mm", "mm", "addmm"] * 2  # chunks of 3, 3, 1 tokens
    assert called == forward + backward
    monkeypatch.undo()
    model.compute_dtype = torch.float32
    expected = gradients(model, hidden, over_tokens(model, hidden, 1.0, compute, 27))
    for mine, exact in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert 0 < float((mine - exact).abs().max() / exact.abs().max()) < 2**-8


def test_a_weight_in_bfloat16_gets_its_gradient_in_bfloat16():
    """As under sharding with parameters gathered in bfloat16: summed in float32, rounded once."""
    model, hidden = Toy(HALF, bias=False), hidden_of(torch.float32)
    model.compute_dtype = HALF
    found = gradients(model, hidden, over_tokens(model, hidden, 1.0, compute, 9))
    plain = Toy(torch.float32, bias=False)
    plain.lm_head.weight.data = model.lm_head.weight.data.float()
    plain.compute_dtype = HALF
    expected = gradients(plain, hidden, over_tokens(plain, hidden, 1.0, compute, 9))
    assert found[1].dtype == HALF
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1].to(HALF))


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
    logits = output_layer(half).logits(hidden)
    weight = half.get_output_embeddings().weight
    assert torch.equal(logits, hidden.to(HALF).float() @ weight.to(HALF).float().t())
    assert torch.equal(log_probabilities(half, hidden, 1.0), logits.log_softmax(-1))


def test_the_output_layer_learns(half):
    hidden = wide(4, half.config.hidden_size).requires_grad_()
    (logp,) = over_tokens(half, hidden, 1.0, lambda logp_CV, where: (logp_CV[:, 0],), 112)
    logp.sum().backward()
    weight = half.get_output_embeddings().weight
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert float(weight.grad.abs().max()) > 0
    assert float(hidden.grad.abs().max()) > 0
    weight.grad = None
