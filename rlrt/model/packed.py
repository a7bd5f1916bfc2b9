"""Sequences laid end to end through a model of transformers, without padding, each shared prefix run once.

All layers but attention act on tokens alone, so they run on the tokens as they lie. Attention runs on blocks of sequences of
about one length; a response's keys are its prefix's and its own. It is given to the model by transformers' attention interface,
so the model's own code, adapters and recomputation of activations stay as they are. ``rlrt.model.forward`` keeps the plain
computation, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "rlrt_packed"
"""Of the attention function, in transformers' registry and in the model's config."""
SHORTEST = 0.6
"""A block of attention holds sequences down to this share of its longest."""


@dataclass(frozen=True)
class Block:
    """``b`` sequences whose attention is computed together, padded to ``t`` queries and ``k`` keys.

    Attributes:
        query_index, key_index: places of (b, t) and (b, k) tokens among the packed ones, flat.
        shape: (b, t, k).
        mask_B1TK: bool, True where a query sees a key; None: plain causal attention.
    """

    query_index: Tensor
    key_index: Tensor
    shape: tuple[int, int, int]
    mask_B1TK: Tensor | None


@dataclass
class Packing:
    """Prefixes and then responses, laid end to end.

    Attributes:
        ids_N, position_N: token ids, and each token's position in its own sequence.
        start_S, length_S: of each prefix and then of each response.
        blocks: what attention computes together.
        order_N: for each token its place in the blocks' outputs, laid end to end.
        kept: where not None, attention appends each layer's keys and values here, (heads, N, head size).
    """

    ids_N: Tensor
    position_N: Tensor
    start_S: Tensor
    length_S: Tensor
    blocks: list[Block]
    order_N: Tensor
    kept: list[tuple[Tensor, Tensor]] | None = field(default=None)


def serves(config: Any, kernel: str) -> bool:
    """Whether packed rows can be run by a model of this config with this attention kernel (``model.attn_implementation``)."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config.model_type == "qwen3" and kinds == {"full_attention"} and kernel == "sdpa"


def enable(model: Any) -> None:
    """Give a model whose attention is causal over all tokens the packed one, where it asks for torch's own kernel."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if not serves(model.config, model.config._attn_implementation):
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def enabled(model: Any) -> bool:
    """Whether ``hidden_states`` can run this model."""
    return getattr(model.config, "_attn_implementation", None) == NAME


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Attention over a ``Packing`` given as ``packing``; torch's own where none is given (``generate``, plain calls).

    Args:
        query, key, value: (1, heads, N, head size); fewer heads for key and value where queries share them.

    Returns:
        (1, N, heads, head size).
    """
    packing: Packing | None = more.pop("packing", None)
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return output, None
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query, key, value))
    if packing.kept is not None:
        packing.kept.append((key[0], value[0]))
    outputs = []
    for block in packing.blocks:
        b, t, k = block.shape

        def taken(x_NHD: Tensor, index: Tensor, width: int, rows: int = b) -> Tensor:
            return x_NHD.index_select(0, index).view(rows, width, *x_NHD.shape[1:]).transpose(1, 2)

        keys, values = taken(key_NHD, block.key_index, k), taken(value_NHD, block.key_index, k)
        if block.mask_B1TK is not None and query.is_cuda:  # its kernels take a mask or shared heads, not both
            keys, values = (x.repeat_interleave(query_NHD.shape[1] // x.shape[1], 1) for x in (keys, values))
        output = F.scaled_dot_product_attention(
            taken(query_NHD, block.query_index, t),
            keys,
            values,
            attn_mask=block.mask_B1TK,
            is_causal=block.mask_B1TK is None,
            scale=more.get("scaling"),
            enable_gqa=query_NHD.shape[1] != keys.shape[1],
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, packing.order_N)[None], None


def pack(
    prefixes: Sequence[Sequence[int]], owner: Sequence[int], responses: Sequence[Sequence[int]], device: torch.device
) -> Packing:
    """Lay out sequences; response i follows ``prefixes[owner[i]]``."""
    sequences = [*prefixes, *responses]
    length_S = torch.tensor([len(s) for s in sequences])
    start_S = length_S.cumsum(0) - length_S
    count, before_S = len(prefixes), torch.zeros_like(length_S)
    source_S = torch.zeros_like(length_S)
    before_S[count:] = length_S[list(owner)]
    source_S[count:] = start_S[list(owner)]
    position_N = torch.arange(int(length_S.sum())) + (before_S - start_S).repeat_interleave(length_S)
    order_N = torch.zeros_like(position_N)
    blocks: list[Block] = []
    placed = 0
    for first, last, causal in ((0, count, True), (count, len(sequences), False)):
        for index in similar(length_S, first, last):
            block, place_N, where_N = make_block(index, start_S, length_S, source_S, before_S, causal)
            order_N[where_N] = place_N + placed
            placed += block.shape[0] * block.shape[1]
            blocks.append(block)
    ids_N = torch.tensor([i for s in sequences for i in s], dtype=torch.long)
    moved = [
        Block(
            b.query_index.to(device),
            b.key_index.to(device),
            b.shape,
            None if b.mask_B1TK is None else b.mask_B1TK.to(device),
        )
        for b in blocks
    ]
    return Packing(ids_N.to(device), position_N.to(device), start_S, length_S, moved, order_N.to(device))


def similar(length_S: Tensor, first: int, last: int) -> list[Tensor]:
    """The sequences from ``first`` to before ``last``, in sets of about one length; empty ones are left out."""
    sets: list[list[int]] = []
    longest = 0
    lengths = length_S.tolist()
    for s in sorted(range(first, last), key=lambda s: (-lengths[s], s)):
        if lengths[s] == 0:
            continue
        if sets and lengths[s] >= SHORTEST * longest:
            sets[-1].append(s)
        else:
            sets.append([s])
            longest = lengths[s]
    return [torch.tensor(s) for s in sets]


def make_block(
    index: Tensor, start_S: Tensor, length_S: Tensor, source_S: Tensor, before_S: Tensor, causal: bool
) -> tuple[Block, Tensor, Tensor]:
    """The block of some sequences; and, token by token, its place in the block's output and among the packed tokens."""
    start, length, source, before = (x[index][:, None] for x in (start_S, length_S, source_S, before_S))
    t, k = int(length.max()), int((before + length).max())
    step_T, step_K = torch.arange(t)[None], torch.arange(k)[None]
    query_BT = start + step_T.minimum(length - 1)
    own_BK = start + (step_K - before).clamp(min=0).minimum(length - 1)
    key_BK = torch.where(step_K < before, source + step_K, own_BK)
    mask = None if causal else (step_K[:, None] <= (before + step_T)[:, :, None])[:, None]
    real_BT = step_T < length
    block = Block(query_BT.flatten(), key_BK.flatten(), (len(index), t, k), mask)
    return block, real_BT.flatten().nonzero()[:, 0], query_BT[real_BT]


def hidden_states(model: Any, packing: Packing) -> Tensor:
    """The last layer's hidden states, normalised, of every packed token: (N, H)."""
    output = model.base_model(
        input_ids=packing.ids_N[None],
        position_ids=packing.position_N[None],
        attention_mask={"full_attention": None},
        use_cache=False,
        packing=packing,
    )
    return output.last_hidden_state[0]
