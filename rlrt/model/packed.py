"""Forward passes over sequences laid end to end, without padding, with each shared prefix run once.

All layers but attention act on each token alone, so they run on the packed tokens. Attention runs on blocks of sequences of
similar length; the keys of a response are those of its prefix and its own. The model gets this attention through transformers'
attention interface, so the model's own code, adapters and recomputation of activations stay unchanged.
``rlrt.model.forward`` has the plain computation, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "rlrt_packed"
"""Name of the attention function in transformers' registry and in the model's config."""
SHORTEST = 0.6
"""Length of the shortest sequence in a block of attention, as a share of the longest: shorter ones start a new block."""


@dataclass(frozen=True)
class Block:
    """``b`` sequences whose attention is computed together, padded to ``t`` queries and ``k`` keys.

    Attributes:
        query_index, key_index: indices of (b, t) and (b, k) tokens into the packed tokens, flattened.
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
        blocks: sequences whose attention is computed together.
        order_N: for each packed token its index into the blocks' concatenated outputs.
        key_values: if not None, attention appends each layer's keys and values to this list, (heads, N, head size).
    """

    ids_N: Tensor
    position_N: Tensor
    start_S: Tensor
    length_S: Tensor
    blocks: list[Block]
    order_N: Tensor
    key_values: list[tuple[Tensor, Tensor]] | None = field(default=None)


def serves(config: Any, kernel: str) -> bool:
    """True if a model with this config and attention kernel (``model.attn_implementation``) can run packed sequences."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config.model_type == "qwen3" and kinds == {"full_attention"} and kernel == "sdpa"


def enable(model: Any) -> None:
    """Register packed attention for a model with causal attention over all tokens that asks for torch's own kernel."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if not serves(model.config, model.config._attn_implementation):
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def enabled(model: Any) -> bool:
    """True if ``hidden_states`` can run this model."""
    return getattr(model.config, "_attn_implementation", None) == NAME


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Compute attention over the ``Packing`` given as ``packing``, or torch's own attention if there is none (``generate``,
    plain calls).

    Args:
        query, key, value: (1, heads, N, head size); fewer heads for key and value if queries share them.

    Returns:
        (1, N, heads, head size).
    """
    packing: Packing | None = more.pop("packing", None)
    if packing is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return output, None
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query, key, value))
    if packing.key_values is not None:
        packing.key_values.append((key[0], value[0]))
    outputs = []
    for block in packing.blocks:
        b, t, k = block.shape

        def gathered(x_NHD: Tensor, index: Tensor, width: int, rows: int = b) -> Tensor:
            return x_NHD.index_select(0, index).view(rows, width, *x_NHD.shape[1:]).transpose(1, 2)

        keys, values = gathered(key_NHD, block.key_index, k), gathered(value_NHD, block.key_index, k)
        if block.mask_B1TK is not None and query.is_cuda:  # its kernels take a mask or shared heads, not both
            keys, values = (x.repeat_interleave(query_NHD.shape[1] // x.shape[1], 1) for x in (keys, values))
        output = F.scaled_dot_product_attention(
            gathered(query_NHD, block.query_index, t),
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
    """Lay out sequences end to end; response i follows ``prefixes[owner[i]]``.

    One prefix of 3 tokens with two responses of 3 and 2 tokens (``owner`` = [0, 0]), N = 8 packed tokens::

        sequence        prefix     response 0   response 1
        packed token    0  1  2    3  4  5      6  7
        position_N      0  1  2    3  4  5      3  4        a response's positions continue its prefix's
        start_S         0          3            6           first packed token of the sequence
        length_S        3          3            2           number of the sequence's own tokens
        source_S        0          0            0           first packed token of the response's prefix
        before_S        0          3            3           number of the prefix's tokens

    Attention computes two blocks: the prefix, then both responses, padded to t = 3 queries and k = 6 keys::

        response 0    query_index 3 4 5    key_index 0 1 2 3 4 5
        response 1    query_index 6 7 7    key_index 0 1 2 6 7 7    padding repeats the last token

    The outputs of the two blocks have 3 + 6 entries, of which the last is padding: ``order_N`` = [0, 1, 2, 3, 4, 5, 6, 7].
    """
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
    offset = 0
    for first, last, causal in ((0, count, True), (count, len(sequences), False)):
        for index in similar(length_S, first, last):
            block, output_N, token_N = make_block(index, start_S, length_S, source_S, before_S, causal)
            order_N[token_N] = output_N + offset
            offset += block.shape[0] * block.shape[1]
            blocks.append(block)
    ids_N = torch.tensor([i for s in sequences for i in s], dtype=torch.long)
    on_device = [
        Block(
            b.query_index.to(device),
            b.key_index.to(device),
            b.shape,
            None if b.mask_B1TK is None else b.mask_B1TK.to(device),
        )
        for b in blocks
    ]
    return Packing(ids_N.to(device), position_N.to(device), start_S, length_S, on_device, order_N.to(device))


def similar(length_S: Tensor, first: int, last: int) -> list[Tensor]:
    """Group the sequences from ``first`` to before ``last`` into sets of similar length; empty sequences are left out."""
    sets: list[list[int]] = []
    longest = 0
    lengths = length_S.tolist()
    for sequence in sorted(range(first, last), key=lambda i: (-lengths[i], i)):
        if lengths[sequence] == 0:
            continue
        if sets and lengths[sequence] >= SHORTEST * longest:
            sets[-1].append(sequence)
        else:
            sets.append([sequence])
            longest = lengths[sequence]
    return [torch.tensor(indices) for indices in sets]


def make_block(
    index: Tensor, start_S: Tensor, length_S: Tensor, source_S: Tensor, before_S: Tensor, causal: bool
) -> tuple[Block, Tensor, Tensor]:
    """Return the attention block of some sequences, and two indices for each of their tokens.

    For both responses of the picture in ``pack`` (``index`` = [1, 2]), query i of a response sees the prefix and the response's
    tokens 0..i; the padded query's output is dropped::

        response 0    query_BT 3 4 5    key_BK 0 1 2 3 4 5    mask 111100, 111110, 111111
        response 1    query_BT 6 7 7    key_BK 0 1 2 6 7 7    mask 111100, 111110, 111111 (padded query)

    Returns:
        the block, each token's index into the block's flat output ([0, 1, 2, 3, 4]), and its index among the packed tokens
        ([3, 4, 5, 6, 7]).
    """
    start, length, source, before = (x[index][:, None] for x in (start_S, length_S, source_S, before_S))
    t, k = int(length.max()), int((before + length).max())
    step_T, step_K = torch.arange(t)[None], torch.arange(k)[None]
    query_BT = start + step_T.minimum(length - 1)
    own_key_BK = start + (step_K - before).clamp(min=0).minimum(length - 1)
    key_BK = torch.where(step_K < before, source + step_K, own_key_BK)
    mask = None if causal else (step_K[:, None] <= (before + step_T)[:, :, None])[:, None]
    real_BT = step_T < length
    block = Block(query_BT.flatten(), key_BK.flatten(), (len(index), t, k), mask)
    return block, real_BT.flatten().nonzero()[:, 0], query_BT[real_BT]


def hidden_states(model: Any, packing: Packing) -> Tensor:
    """Return the last layer's normalised hidden states of every packed token: (N, H)."""
    output = model.base_model(
        input_ids=packing.ids_N[None],
        position_ids=packing.position_N[None],
        attention_mask={"full_attention": None},
        use_cache=False,
        packing=packing,
    )
    return output.last_hidden_state[0]
