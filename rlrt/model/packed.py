"""Forward passes over sequences laid end to end, without padding, with each shared prefix run once.

All layers but attention act on each token alone, so they run on the packed tokens. In attention the keys of a response are
those of its prefix and its own. On a GPU in half precision one flash kernel takes all sequences as they lie (``Varlen``): no
padding and no mask. Elsewhere attention runs on blocks of sequences of similar length, under masks (``Blocks``).

The model gets this attention through transformers' attention interface, so the model's own code, adapters and recomputation of
activations stay unchanged. ``rlrt.model.structure`` says which models it serves. ``rlrt.model.forward`` has the plain
computation, which the tests compare with.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlrt.model.precision import dtype_of

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
        mask_B1TK: bool, True where a query sees a key; one for all rows, (1, 1, t, k), where their prefixes are of one length.
            None: plain causal attention.
    """

    query_index: Tensor
    key_index: Tensor
    shape: tuple[int, int, int]
    mask_B1TK: Tensor | None


@dataclass(frozen=True)
class Blocks:
    """Attention by blocks of padded sequences.

    Attributes:
        blocks: sequences whose attention is computed together.
        order_N: for each packed token its index into the blocks' concatenated outputs.
    """

    blocks: list[Block]
    order_N: Tensor


@dataclass(frozen=True)
class Varlen:
    """Attention by one kernel over sequences of any lengths, on Q queries and K keys laid end to end.

    Queries are the packed tokens as they lie. Keys are gathered once: a prefix's own tokens; a response's prefix and then its
    own tokens. So a prefix's keys are held once for each of its responses, which is linear in bytes: prefix x responses.

    Attributes:
        key_index_K: indices into the packed tokens.
        query_start_S, key_start_S: int32, first query and first key of each sequence, and their numbers at the end.
        longest_query, longest_key: of one sequence.
        dtype: precision of queries, keys and values.
    """

    key_index_K: Tensor
    query_start_S: Tensor
    key_start_S: Tensor
    longest_query: int
    longest_key: int
    dtype: torch.dtype


@dataclass
class Packing:
    """Prefixes and then responses, laid end to end.

    Attributes:
        ids_N, position_N: token ids, and each token's position in its own sequence.
        start_S, length_S: of each prefix and then of each response, on the CPU.
        layout: how attention is computed.
        key_values: if not None, attention appends each layer's keys and values to this list, (heads, N, head size).
    """

    ids_N: Tensor
    position_N: Tensor
    start_S: Tensor
    length_S: Tensor
    layout: Blocks | Varlen
    key_values: list[tuple[Tensor, Tensor]] | None = field(default=None)


def enable(model: Any) -> None:
    """Register packed attention and let the model use it; ``rlrt.model.paths.choose`` says whether it serves the model."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def enabled(model: Any) -> bool:
    """True if ``hidden_states`` can run this model."""
    return getattr(model.config, "_attn_implementation", None) == NAME


def flash_takes(kind: str, number: int, head_size: int) -> bool:
    """True if torch's flash kernel takes packed rows: half precision on a GPU, and heads of a size that it was built for.

    Args:
        kind: of device.
        number: bytes of a number in the precision of computation.
        head_size: numbers of one head.
    """
    return kind == "cuda" and number == 2 and head_size % 8 == 0 and head_size <= 256


def flash_dtype(model: Any) -> torch.dtype | None:
    """Return the precision in which the flash kernel computes this model's packed rows; None: blocks under masks do."""
    device, dtype, config = next(model.parameters()).device, dtype_of(model), model.config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not flash_takes(device.type, dtype.itemsize, head_size):
        return None
    return dtype if torch.cuda.get_device_capability(device)[0] >= 8 else None  # the kernel needs Ampere or later


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
    if packing.key_values is not None:
        packing.key_values.append((key[0], value[0]))
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query, key, value))
    layout, scale = packing.layout, more.get("scaling")
    if isinstance(layout, Varlen):
        return by_varlen(query_NHD, key_NHD, value_NHD, layout, scale)[None], None
    return by_blocks(query_NHD, key_NHD, value_NHD, layout, scale)[None], None


def by_varlen(query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, layout: Varlen, scale: float | None) -> Tensor:
    """Return attention's output by the flash kernel, (N, heads, head size), in half precision.

    Keys and values are cast before they are gathered, so the gradient of a prefix's keys is a sum over its responses in half
    precision.
    """
    query_NHD, key_NHD, value_NHD = (x.to(layout.dtype) for x in (query_NHD, key_NHD, value_NHD))
    return flash(
        query_NHD,
        key_NHD.index_select(0, layout.key_index_K),
        value_NHD.index_select(0, layout.key_index_K),
        layout.query_start_S,
        layout.key_start_S,
        layout.longest_query,
        layout.longest_key,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query_NHD.shape[1] != key_NHD.shape[1],
    )


def flash(*tensors: Any, **options: Any) -> Tensor:
    """Return the output of ``torch.nn.attention.varlen.varlen_attn``, which has no CPU kernel: tests put a reference here.

    Under ``window_size=(-1, 0)`` causality is aligned to the bottom right, as in flash-attn since 2.1: the last query of a
    sequence sees its last key, so query i of a response of n tokens behind a prefix of p sees keys 0..p + i.
    ``benchmarks/gpu/packing.py`` compares it on a card with the plain path, forward and gradients (docs/gpu.md).
    """
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(*tensors, **options)
    assert isinstance(output, Tensor)
    return output


def by_blocks(query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, layout: Blocks, scale: float | None) -> Tensor:
    """Return attention's output block by block, (N, heads, head size)."""
    outputs = []
    for block in layout.blocks:
        b, t, k = block.shape

        def gathered(x_NHD: Tensor, index: Tensor, width: int, rows: int = b) -> Tensor:
            return x_NHD.index_select(0, index).view(rows, width, *x_NHD.shape[1:]).transpose(1, 2)

        keys, values = gathered(key_NHD, block.key_index, k), gathered(value_NHD, block.key_index, k)
        if block.mask_B1TK is not None and query_NHD.is_cuda:  # its kernels take a mask or shared heads, not both
            keys, values = (x.repeat_interleave(query_NHD.shape[1] // x.shape[1], 1) for x in (keys, values))
        output = F.scaled_dot_product_attention(
            gathered(query_NHD, block.query_index, t),
            keys,
            values,
            attn_mask=block.mask_B1TK,
            is_causal=block.mask_B1TK is None,
            scale=scale,
            enable_gqa=query_NHD.shape[1] != keys.shape[1],
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, layout.order_N)


def pack(
    prefixes: Sequence[Sequence[int]],
    owner: Sequence[int],
    responses: Sequence[Sequence[int]],
    device: torch.device,
    half: torch.dtype | None = None,
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

    Under ``Varlen``, ``key_index_K`` = [0 1 2, 0 1 2 3 4 5, 0 1 2 6 7], ``query_start_S`` = [0, 3, 6, 8] and ``key_start_S`` =
    [0, 3, 9, 14]. Under ``Blocks`` attention computes two blocks: the prefix, then both responses, padded to t = 3 queries and
    k = 6 keys::

        response 0    query_index 3 4 5    key_index 0 1 2 3 4 5
        response 1    query_index 6 7 7    key_index 0 1 2 6 7 7    padding repeats the last token

    The outputs of the two blocks have 3 + 6 entries, of which the last is padding: ``order_N`` = [0, 1, 2, 3, 4, 5, 6, 7].

    Args:
        half: precision of the flash kernel (``flash_dtype``); None: blocks under masks.
    """
    sequences = [*prefixes, *responses]
    length_S = torch.tensor([len(s) for s in sequences])
    start_S = length_S.cumsum(0) - length_S
    count, before_S = len(prefixes), torch.zeros_like(length_S)
    source_S = torch.zeros_like(length_S)
    before_S[count:] = length_S[list(owner)]
    source_S[count:] = start_S[list(owner)]
    position_N = torch.arange(int(length_S.sum())) + (before_S - start_S).repeat_interleave(length_S)
    ids_N = torch.tensor(list(itertools.chain.from_iterable(sequences)), dtype=torch.long)
    layout: Blocks | Varlen
    if half is not None:
        layout = varlen_of(start_S, length_S, source_S, before_S, device, half)
    else:
        layout = blocks_of(count, start_S, length_S, source_S, before_S, device)
    return Packing(ids_N.to(device), position_N.to(device), start_S, length_S, layout)


def varlen_of(
    start_S: Tensor, length_S: Tensor, source_S: Tensor, before_S: Tensor, device: torch.device, dtype: torch.dtype
) -> Varlen:
    """Return the layout for the flash kernel; sequences without tokens of their own are left out."""
    own = length_S > 0
    start, length, source, before = (x[own] for x in (start_S, length_S, source_S, before_S))
    keys = before + length
    first = F.pad(keys.cumsum(0), (1, 0))
    step_K = torch.arange(int(first[-1])) - first[:-1].repeat_interleave(keys)
    before_K = before.repeat_interleave(keys)
    own_K = step_K - before_K + start.repeat_interleave(keys)
    key_index_K = torch.where(step_K < before_K, step_K + source.repeat_interleave(keys), own_K)
    return Varlen(
        key_index_K.to(device),
        F.pad(length.cumsum(0), (1, 0)).to(device, torch.int32),
        first.to(device, torch.int32),
        int(length.max()),
        int(keys.max()),
        dtype,
    )


def blocks_of(
    count: int, start_S: Tensor, length_S: Tensor, source_S: Tensor, before_S: Tensor, device: torch.device
) -> Blocks:
    """Return the layout by blocks: of the first ``count`` sequences, the prefixes, and then of the responses."""
    order_N = torch.zeros(int(length_S.sum()), dtype=torch.long)
    blocks: list[Block] = []
    offset = 0
    for first, last, causal in ((0, count, True), (count, len(length_S), False)):
        for index in similar(length_S, first, last):
            block, output_N, token_N = make_block(index, start_S, length_S, source_S, before_S, causal, device)
            order_N[token_N] = output_N + offset
            offset += block.shape[0] * block.shape[1]
            blocks.append(block)
    return Blocks(blocks, order_N.to(device))


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
    index: Tensor,
    start_S: Tensor,
    length_S: Tensor,
    source_S: Tensor,
    before_S: Tensor,
    causal: bool,
    device: torch.device,
) -> tuple[Block, Tensor, Tensor]:
    """Return the attention block of some sequences, and two indices for each of their tokens.

    For both responses of the picture in ``pack`` (``index`` = [1, 2]), query i of a response sees the prefix and the response's
    tokens 0..i; the padded query's output is dropped::

        response 0    query_BT 3 4 5    key_BK 0 1 2 3 4 5    mask 111100, 111110, 111111
        response 1    query_BT 6 7 7    key_BK 0 1 2 6 7 7    the same mask

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
    mask = None if causal else mask_of(before[:, 0], t, k).to(device)
    real_BT = step_T < length
    block = Block(query_BT.flatten().to(device), key_BK.flatten().to(device), (len(index), t, k), mask)
    return block, real_BT.flatten().nonzero()[:, 0], query_BT[real_BT]


def mask_of(before_B: Tensor, t: int, k: int) -> Tensor:
    """Return which of ``k`` keys each of ``t`` queries sees behind prefixes of these lengths: (B, 1, t, k).

    One mask serves all rows, (1, 1, t, k), where the prefixes are of one length.
    """
    lengths = before_B.tolist()
    if len(set(lengths)) == 1:
        lengths = lengths[:1]
    mask_B1TK = torch.ones(len(lengths), 1, t, k, dtype=torch.bool)
    for mask_1TK, before in zip(mask_B1TK, lengths, strict=True):
        mask_1TK.tril_(before)
    return mask_B1TK


def hidden_states(model: Any, packing: Packing) -> Tensor:
    """Return the last layer's normalised hidden states of every packed token: (N, H).

    A mask of four dimensions is handed down as it is; without one transformers would make a mask of N x N for the sequences
    that it finds in the positions. ``attention`` does not look at it.
    """
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.ids_N.device)
    output = model.base_model(
        input_ids=packing.ids_N[None],
        position_ids=packing.position_N[None],
        attention_mask=unread,
        use_cache=False,
        packing=packing,
    )
    return output.last_hidden_state[0]
