"""Packed rows by the flash kernel's layout, with a CPU reference in the kernel's place, against the plain path."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlrt.model import packed
from rlrt.model.forward import Row, plain_hidden, response_hidden
from rlrt.model.packed import Blocks, Varlen, flash_dtype, flash_takes, pack
from rlrt.model.paths import choose
from tests.ledger import Ledger
from tests.model import varlen
from tests.model.test_forward import grads, ragged_rows
from tests.training.test_update import close

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 112, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.fixture
def flash(monkeypatch):
    """Calls of the kernel: packed rows take its layout on the CPU, in the model's own precision."""
    calls = []

    def noting(*given, **options):
        calls.append((given, options))
        return varlen.varlen_attn(*given, **options)

    monkeypatch.setattr(packed, "flash", noting)
    monkeypatch.setattr(packed, "flash_dtype", lambda model: next(model.parameters()).dtype)
    return calls


def model_of(key_heads=1, dtype=torch.float32, kind="qwen3"):
    torch.manual_seed(0)
    shape = {**SHAPE, "num_attention_heads": 4, "num_key_value_heads": key_heads}
    qwen3 = kind == "qwen3"
    model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16)) if qwen3 else LlamaForCausalLM(LlamaConfig(**shape))
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    assert choose(model).attention == "packed"
    return model.to(dtype)


def test_the_layout_of_the_picture():
    """The example of ``pack``: a prefix of 3, responses of 3 and 2."""
    packing = pack([[1, 2, 3]], [0, 0], [[4, 5, 6], [7, 8]], CPU, torch.bfloat16)
    layout = packing.layout
    assert isinstance(layout, Varlen)
    assert layout.key_index_K.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1, 2, 6, 7]
    assert layout.query_start_S.tolist() == [0, 3, 6, 8]
    assert layout.key_start_S.tolist() == [0, 3, 9, 14]
    assert (layout.longest_query, layout.longest_key) == (3, 6)
    assert layout.query_start_S.dtype == layout.key_start_S.dtype == torch.int32
    assert packing.ids_N.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert packing.position_N.tolist() == [0, 1, 2, 3, 4, 5, 3, 4]


def test_responses_without_tokens_of_their_own_are_left_out():
    """Two prefixes of 2 and 1 tokens; responses of 0, 1 and 0 tokens behind the first, the second and the second."""
    layout = pack([[1, 2], [3]], [0, 1, 1], [[], [4], []], CPU, torch.bfloat16).layout
    assert layout.key_index_K.tolist() == [0, 1, 2, 2, 3]
    assert layout.query_start_S.tolist() == [0, 2, 3, 4]
    assert layout.key_start_S.tolist() == [0, 2, 3, 5]


def test_the_reference_has_the_kernels_signature():
    from torch.nn.attention.varlen import varlen_attn

    theirs = list(inspect.signature(varlen_attn).parameters.values())
    ours = list(inspect.signature(varlen.varlen_attn).parameters.values())
    assert len([p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]) == 7
    assert [p.name for p in theirs[:7]] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {p.name for p in ours[7:]} <= {p.name for p in theirs}


def test_bottom_right_by_hand():
    """Two queries and three keys, all scores equal: the first query sees two keys, the last all three."""
    value = torch.tensor([1.0, 2.0, 6.0]).reshape(3, 1, 1)
    starts = [torch.tensor([0, n], dtype=torch.int32) for n in (2, 3)]
    output = varlen.varlen_attn(
        torch.zeros(2, 1, 1), torch.ones(3, 1, 1), value, *starts, 2, 3, window_size=(-1, 0), enable_gqa=False
    )
    assert output.flatten().tolist() == [1.5, 3.0]


def test_the_references_gradient_is_autograds():
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(n, h, 8, generator=draw).double().requires_grad_() for n, h in ((5, 4), (9, 2), (9, 2))
    )
    starts = [torch.tensor(s, dtype=torch.int32) for s in ([0, 2, 5], [0, 6, 9])]
    weight = torch.randn(5, 4, 8, generator=draw).double()
    outputs = [
        varlen.varlen_attn(query, key, value, *starts, 3, 6, window_size=(-1, 0), enable_gqa=True),
        torch.cat([
            torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=~hidden
            )[0].transpose(0, 1)
            for _, _, q, k, v, hidden in varlen.sequences(query, key, value, *starts)
        ]),
    ]  # fmt: skip
    assert torch.allclose(*outputs)
    for one, other in zip(
        *(torch.autograd.grad((o * weight).sum(), (query, key, value)) for o in outputs), strict=True
    ):
        assert torch.allclose(one, other)


@pytest.mark.parametrize(
    ("key_heads", "dtype", "kind"),
    [(1, torch.float32, "qwen3"), (4, torch.float64, "qwen3"), (2, torch.float64, "llama")],
)
def test_values_and_gradients_are_those_of_the_plain_path(flash, key_heads, dtype, kind):
    """Five prompts of 1 to 30 tokens, several responses to each, of 1 to 40 tokens."""
    model, rows = model_of(key_heads, dtype, kind), ragged_rows()
    assert {len(r.response_ids) for r in rows} >= {1, 2, 40}
    flash.clear()  # the check of the paths ran it too
    values = [f(model, rows) for f in (response_hidden, plain_hidden)]
    assert len(flash) == 2  # a call for each layer, for all sequences
    assert torch.allclose(*values, atol=1e-9 if dtype == torch.float64 else 2e-5)
    weight = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    one, other = (grads(model, (f(model, rows) * weight).sum()) for f in (response_hidden, plain_hidden))
    assert close(one, other)


def test_bfloat16_stays_near_the_plain_path(flash, monkeypatch):
    """Under autocast queries, keys and values are cast before they are gathered."""
    from rlrt.model.precision import set_compute_dtype

    model, rows = model_of(), ragged_rows()
    set_compute_dtype(model, torch.bfloat16)
    flash.clear()
    monkeypatch.setattr(packed, "flash_dtype", lambda model: torch.bfloat16)
    values = [f(model, rows) for f in (response_hidden, plain_hidden)]
    assert (values[0] - values[1]).abs().max() < 0.25
    for (query, key, value, *_), options in flash:
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        assert key.shape[1] == 1  # never repeated for the queries that share them
        assert options["window_size"] == (-1, 0)
        assert options["enable_gqa"]


def test_recomputed_activations_give_the_same_gradient(flash):
    model, rows = model_of(2).train(), ragged_rows()
    plain = grads(model, response_hidden(model, rows).square().sum())
    model.activation_checkpointing_enable()
    assert close(grads(model, response_hidden(model, rows).square().sum()), plain)


@pytest.mark.parametrize("responses", [[[9] * 20], [[9] * 5, [], [7]], [[]]])
def test_rows_of_one_prompt_alone(flash, responses):
    """A long response, an empty one of its own (a response of one token), and a row that is all prompt."""
    model = model_of(2, torch.float64)
    rows = [Row([1, 20, 109], [*ids, 5]) for ids in responses]
    with torch.no_grad():
        assert torch.allclose(response_hidden(model, rows), plain_hidden(model, rows), atol=1e-9)


def test_decoding_starts_from_keys_and_values_of_the_same_layout(flash):
    from rlrt.engines.cached import CachedDecoder
    from rlrt.model.dense import DenseDecoder

    model, prompts = model_of(2), [[3, 4, 5], [6, 7, 8, 9, 10]]
    flash.clear()
    with torch.inference_mode():
        found = []
        for decoder in (DenseDecoder(model), CachedDecoder(model)):
            logits = [decoder.start(prompts, [2, 1])]
            logits += [decoder.step(torch.tensor([11 + t, 12, 13])) for t in range(3)]
            found.append(torch.stack(logits))
    assert len(flash) == 2
    assert torch.allclose(*found, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "number", "size", "takes"),
    [
        ("cuda", 2, 128, True), ("cuda", 2, 64, True), ("cuda", 4, 128, False), ("cpu", 2, 128, False),
        ("cuda", 2, 12, False), ("cuda", 2, 512, False),
    ],
)  # fmt: skip
def test_where_the_flash_kernel_is_taken(kind, number, size, takes):
    assert flash_takes(kind, number, size) == takes


def test_the_cpu_keeps_blocks_under_masks():
    model = model_of()
    model.compute_dtype = torch.bfloat16
    assert flash_dtype(model) is None
    assert isinstance(pack([[1]], [0], [[2]], CPU, flash_dtype(model)).layout, Blocks)


def test_no_tensor_is_quadratic_and_a_prefix_is_gathered_for_each_response():
    """Of 400 and 800 tokens: twice the bytes, with a mask about four times as many."""
    most = {}
    for half in (torch.bfloat16, None):
        for tokens in (400, 800):
            ledger = Ledger()
            with ledger:
                pack([[1] * 20], [0, 0], [[2] * tokens] * 2, CPU, half)
            most[half, tokens] = ledger.peak
    assert most[torch.bfloat16, 800] < 2.1 * most[torch.bfloat16, 400]
    assert most[None, 800] > 3 * most[None, 400]
    layout = pack([[1] * 20], [0, 0], [[2] * 400] * 2, CPU, torch.bfloat16).layout
    assert len(layout.key_index_K) == 20 + 2 * (20 + 400)


def test_rows_of_one_prompt_share_a_mask():
    one = pack([[1] * 3], [0, 0], [[2] * 4, [2] * 3], CPU).layout.blocks[1]
    assert one.shape == (2, 4, 7)
    assert one.mask_B1TK.shape == (1, 1, 4, 7)
    assert one.mask_B1TK[0, 0].int().tolist() == [[1] * (4 + i) + [0] * (3 - i) for i in range(4)]
    two = pack([[1] * 3, [1] * 2], [0, 1], [[2] * 4, [2] * 4], CPU).layout.blocks[-1]
    assert two.mask_B1TK.shape == (2, 1, 4, 7)
    assert two.mask_B1TK[1, 0].int().tolist() == [[1] * (3 + i) + [0] * (4 - i) for i in range(4)]
