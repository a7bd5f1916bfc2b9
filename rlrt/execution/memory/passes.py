"""Bytes that one forward and backward pass allocates, tensor by tensor as in ``forward`` and ``packed`` of ``rlrt.model``.

Letters: ``b`` rows of ``t`` queries that see ``k`` keys. Model shapes are a Qwen3's; another causal model counts as a Qwen3
of the same width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlrt.execution.memory.sizes import Sizes
from rlrt.model.dense import ROOM
from rlrt.model.forward import CHUNK_ELEMENTS

FLOAT, INDEX = 4, 8
"""Bytes of a float32 and of an index."""
WIDE = {"plain": 3, "term": 5, "distilled": 7}
"""Tensors of tokens x vocabulary in float32 that exist at once: without an auxiliary loss, with one on the student's
distribution, with one on the teacher's too (counted in tests/execution/test_memory.py)."""
SCORES_SAVED, SCORES_MORE = 1, 2
"""Tensors of heads x queries x keys that torch's unfused attention saves for the backward pass, and that it adds to them."""


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch.

    Attributes:
        tokens: number of tokens that the layers run on.
        responses: number of tokens whose distribution is needed.
        blocks: (b, t, k, masks) of each block of attention; 0 masks: plain causal attention.
        flash: True if one flash kernel takes all sequences as they lie (``rlrt.model.packed.Varlen``).
    """

    tokens: int
    responses: int
    blocks: Sequence[tuple[int, int, int, int]]
    flash: bool = False

    @property
    def seen(self) -> int:
        """Return the number of pairs of query and key in masks."""
        return sum(masks * t * k for _, t, k, masks in self.blocks)


def largest_batch(
    packed: bool, budget: int, prompt: int, response: int, group: int, rows: int, flash: bool = False
) -> Batch:
    """Return the micro-batch of full-length responses that ``rlrt.model.forward.micro_batches`` fills first.

    Args:
        packed: True if rows of one prompt share its tokens.
        budget: ``train.token_budget``.
        prompt, response: lengths in tokens.
        group: number of rows per prompt.
        rows: number of rows of the mini-batch.
        flash: True if packed rows need no masks.
    """
    if not packed:
        taken = min(rows, max(1, budget // (prompt + response)))
        width = prompt + response - 1
        return Batch(taken * width, taken * response, [(taken, width, width, 0)])
    own = response - 1
    taken = prompts = used = 0
    while taken < rows:
        opens = taken % group == 0
        if taken and used + own + prompt * opens > budget:
            break
        used += own + prompt * opens
        prompts += opens
        taken += 1
    masks = 0 if flash else 1 if prompts == 1 else taken  # rows of one prompt share a mask; prompts differ in length
    blocks = [(prompts, prompt, prompt, 0)] + ([(taken, own, prompt + own, masks)] if own else [])
    return Batch(used, taken * response, blocks, flash)


def scores(sizes: Sizes, batch: Batch, number: int, kind: str) -> int:
    """Return the bytes of one layer's attention scores where torch has no fused kernel.

    That is on a GPU in float32 for blocks without a mask whose queries share key heads: torch then computes plainly. Under a
    mask the keys are repeated for each query head, and the memory-efficient kernel makes no scores; in bfloat16 the flash
    kernel makes none.
    """
    if kind == "cpu" or number != FLOAT or sizes.heads == sizes.key_heads:
        return 0
    return sizes.heads * sum(b * t * k for b, t, k, masks in batch.blocks if not masks) * FLOAT


def repeats_keys(sizes: Sizes, kind: str, masks: int) -> bool:
    """True if a block's keys and values are repeated for every query head: on a GPU, under a mask, where queries share key
    heads."""
    return kind != "cpu" and masks > 0 and sizes.heads != sizes.key_heads


def saved_by_layer(sizes: Sizes, batch: Batch, number: int, kind: str) -> int:
    """Return the bytes that one layer saves for its backward pass, without its copies of weights.

    Args:
        number: bytes of a number in the precision of matrix products.
        kind: kind of device.
    """
    n, normed = batch.tokens, not sizes.adapted  # the input of a norm's weight is saved only for that weight's gradient
    inputs = 2 if number == FLOAT else 5  # of q, k, v and of gate, up: shared, or in bfloat16 a cast copy each
    stream = sizes.hidden * (2 * (1 + normed) * FLOAT + inputs * number)
    heads = (sizes.queries + sizes.keys) * (FLOAT + normed * number)
    if not batch.flash:  # attention's output in the order of the tokens; the flash kernel's is in it already
        heads += sizes.queries * number
    inner = 4 * sizes.inner * number  # gate, its activation, up, their product
    roots = (2 + sizes.heads + sizes.key_heads) * FLOAT
    held = n * (stream + heads + inner + roots)
    for b, t, k, masks in batch.blocks:
        held += b * t * (2 * sizes.queries * number + sizes.heads * FLOAT)  # queries, output, log-sum-exp
        held += 2 * b * k * (sizes.queries if repeats_keys(sizes, kind, masks) else sizes.keys) * number
        held += masks * t * k * number  # as additive bias
    return held + SCORES_SAVED * scores(sizes, batch, number, kind)


def saved_once(sizes: Sizes, batch: Batch) -> int:
    """Return the bytes that a pass saves besides its layers: rotary positions, indices, masks, and the output layer's input."""
    indices = sum(INDEX * (b * t + b * k) for b, t, k, _ in batch.blocks) + 2 * INDEX * batch.tokens
    norm = (1 if sizes.adapted else 2) * batch.tokens * sizes.hidden * FLOAT
    return indices + batch.seen + 2 * batch.tokens * sizes.head_size * FLOAT + norm + hidden(sizes, batch)


def hidden(sizes: Sizes, batch: Batch) -> int:
    """Return the bytes of the output layer's input."""
    return batch.responses * sizes.hidden * FLOAT


def in_backward(sizes: Sizes, batch: Batch, number: int, kind: str) -> int:
    """Return the bytes of gradients that a layer's backward pass allocates and frees."""
    more = batch.tokens * (sizes.inner * number + sizes.hidden * FLOAT)
    return more + SCORES_MORE * scores(sizes, batch, number, kind)


def in_forward(sizes: Sizes, batch: Batch, number: int, kind: str) -> int:
    """Return the bytes that a pass without gradients holds at once: the residual stream, and the peak within a layer."""
    n = batch.tokens
    attention = sum(
        b * t * 2 * sizes.queries * number
        + 2 * b * k * (sizes.queries if repeats_keys(sizes, kind, masks) else sizes.keys) * number
        for b, t, k, masks in batch.blocks
    )
    attention += n * (sizes.queries + 2 * sizes.keys) * number + batch.seen * number
    attention += (SCORES_SAVED + SCORES_MORE) * scores(sizes, batch, number, kind)
    widest = max(3 * n * sizes.inner * number, attention)
    return 2 * n * sizes.hidden * FLOAT + widest + batch.seen


def chunk(sizes: Sizes, batch: Batch, kind: str) -> int:
    """Return the bytes of one tensor of tokens x vocabulary as ``forward.over_tokens`` makes it."""
    elements = CHUNK_ELEMENTS.get(kind, CHUNK_ELEMENTS["cuda"])
    return min(batch.responses, max(1, elements // sizes.vocabulary)) * sizes.vocabulary * FLOAT


def cast_head(sizes: Sizes, number: int, kind: str) -> int:
    """Return the bytes of the output layer's weight as a pass casts it (``rlrt.model.head.factor``); 0 if it is not cast."""
    return 0 if number == FLOAT else sizes.head * (FLOAT if kind == "cpu" else number)


def room(width: int, tokens: int) -> int:
    """Return the capacity of a key-value cache that began with ``width`` tokens and took ``tokens`` more, as ``DenseDecoder``
    widens it."""
    column, capacity = width, width + max(ROOM, width // 4)
    while capacity < width + tokens - 1:
        column = capacity
        capacity = column + max(ROOM, column // 4)
    return capacity
