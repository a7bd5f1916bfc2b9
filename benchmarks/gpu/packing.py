"""Checks of packed attention on a card: the flash kernel's causality, and its values and gradients beside the plain path.

``rlrt.model.packed.flash`` relies on causality that is aligned to the bottom right.
"""

from __future__ import annotations

from typing import Any

import torch

from rlrt.model import packed
from rlrt.model.forward import Row, plain_hidden, response_hidden
from rlrt.model.packed import Varlen, pack
from rlrt.model.precision import set_compute_dtype


def alignment(device: torch.device) -> tuple[bool, str]:
    """Two queries and three keys of equal scores: the first query sees two keys, the last all three."""
    if device.type != "cuda":
        return True, "no flash kernel here"
    value = (
        torch.tensor([1.0, 2.0, 6.0], device=device, dtype=torch.bfloat16)[:, None, None].expand(3, 1, 64).contiguous()
    )
    query, key = torch.zeros_like(value[:2]), torch.ones_like(value)
    starts = [torch.tensor([0, n], dtype=torch.int32, device=device) for n in (2, 3)]
    out = packed.flash(query, key, value, *starts, 2, 3, scale=None, window_size=(-1, 0), enable_gqa=False)
    found = out[:, 0, 0].tolist()
    return found == [1.5, 3.0], f"outputs {found}; aligned to the bottom right they are [1.5, 3.0]"


def gradients(model: Any) -> tuple[bool, str]:
    """Hidden states and gradients of packed rows in bfloat16, several prompts with several responses, beside the plain path's.

    Both are compared with the plain path in float32: packed rows may be at most twice as far from it as plain rows in bfloat16.
    """
    generator = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randint(3, model.config.vocab_size, (count,), generator=generator).tolist()  # noqa: E731
    prompts = [draw(40), draw(1), draw(25)]
    rows = [Row(prompts[i % 3], draw(length)) for i, length in enumerate((1, 30, 2, 77, 51, 64, 200))]

    def run(forward: Any, dtype: torch.dtype) -> torch.Tensor:
        set_compute_dtype(model, dtype)
        model.zero_grad(set_to_none=True)
        hidden = forward(model, rows)
        weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).to(hidden.device)
        (hidden.float() * weight).sum().backward()
        projections = [
            getattr(layer.self_attn, n) for layer in model.base_model.layers for n in ("q_proj", "k_proj", "v_proj")
        ]
        return torch.cat([hidden.detach().float().flatten(), *(p.weight.grad.float().flatten() for p in projections)])

    exact = run(plain_hidden, torch.float32)
    off = [float((run(f, torch.bfloat16) - exact).norm() / exact.norm()) for f in (response_hidden, plain_hidden)]
    taken = packed.flash_dtype(model) is not None
    model.zero_grad(set_to_none=True)
    on_card = next(model.parameters()).device.type == "cuda"
    said = f"from float32: packed {off[0]:.1e}, plain {off[1]:.1e}; flash kernel {'taken' if taken else 'not taken'}"
    return off[0] < 2 * off[1] + 1e-4 and taken == on_card, said


def memory(model: Any, tokens: int = 20480) -> tuple[bool, str]:
    """A row of 20,480 tokens packs and runs without anything of tokens x tokens: below a quarter of the bytes of one mask."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return True, "no flash kernel here"
    set_compute_dtype(model, torch.bfloat16)
    packing = pack([[5] * 256], [0], [[9] * tokens], device, packed.flash_dtype(model))
    assert isinstance(packing.layout, Varlen)
    heads, size = model.config.num_attention_heads, model.base_model.layers[0].self_attn.head_dim
    shared = model.config.num_key_value_heads
    shape = lambda n: torch.randn(1, n, tokens + 256, size, device=device)  # noqa: E731
    query, key, value = shape(heads), shape(shared), shape(shared)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    packed.attention(None, query, key, value, None, packing=packing)
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    copies = (
        2 * (2 * heads + 4 * shared) * (tokens + 256) * size + 2 * 256 * 2 * shared * size + 4 * heads * (tokens + 256)
    )
    return taken < 1.2 * copies, f"{taken / 1e6:.0f} MB; queries, keys and output in bfloat16 are {copies / 1e6:.0f} MB"
