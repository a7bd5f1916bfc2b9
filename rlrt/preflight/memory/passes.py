"""Bytes that one forward and backward pass holds, tensor by tensor as ``forward`` and ``packed`` of ``rlrt.model`` make them.

A letter names a count of tokens: ``b`` rows of ``t`` queries that see ``k`` keys. Model shapes are a Qwen3's; for another
causal model they are those of a Qwen3 as wide as it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlrt.engines.qwen3 import ROOM
from rlrt.model.forward import CHUNK_ELEMENTS
from rlrt.preflight.memory.sizes import Sizes

FLOAT, INDEX = 4, 8
"""Bytes of a float32 and of an index."""
WIDE = {"plain": 3, "term": 5, "distilled": 7}
"""Tensors of tokens x vocabulary in float32 that are alive at once: without an auxiliary loss, with one on the student's
distribution, with one on the teacher's too (counted in tests/memory)."""
SCORES_KEPT, SCORES_MORE = 1, 2
"""Tensors of heads x queries x keys that torch's unfused attention keeps for the backward pass, and makes besides."""


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch.

    Attributes:
        tokens: that the layers run on.
        responses: tokens whose distribution is needed.
        blocks: (b, t, k, masked) of what attention computes together.
    """

    tokens: int
    responses: int
    blocks: Sequence[tuple[int, int, int, bool]]

    @property
    def seen(self) -> int:
        """Pairs of query and key under a mask."""
        return sum(b * t * k for b, t, k, masked in self.blocks if masked)


def largest_batch(packed: bool, budget: int, prompt: int, response: int, group: int, rows: int) -> Batch:
    """The micro-batch of full-length responses that ``rlrt.model.forward.micro_batches`` fills first.

    Args:
        packed: whether rows of one prompt share it.
        budget: ``train.token_budget``.
        prompt, response: tokens.
        group: rows of one prompt.
        rows: of the mini-batch.
    """
    if not packed:
        taken = min(rows, max(1, budget // (prompt + response)))
        width = prompt + response - 1
        return Batch(taken * width, taken * response, [(taken, width, width, False)])
    own = response - 1
    taken = prompts = used = 0
    while taken < rows:
        opens = taken % group == 0
        if taken and used + own + prompt * opens > budget:
            break
        used += own + prompt * opens
        prompts += opens
        taken += 1
    blocks = [(prompts, prompt, prompt, False)] + ([(taken, own, prompt + own, True)] if own else [])
    return Batch(used, taken * response, blocks)


def scores(sizes: Sizes, batch: Batch, kind: str) -> int:
    """Bytes of one layer's attention scores, where torch has no fused kernel: on a GPU, a mask together with key heads that
    queries share."""
    unfused = kind != "cpu" and sizes.heads != sizes.key_heads
    return sizes.heads * batch.seen * FLOAT if unfused else 0


def kept_by_layer(sizes: Sizes, batch: Batch, number: int, kind: str) -> int:
    """Bytes that one layer keeps for its backward pass, its copies of weights apart.

    Args:
        number: bytes of a number in the precision that matrices are multiplied in.
        kind: of device.
    """
    n, normed = batch.tokens, not sizes.adapted  # what a norm's weight is multiplied with is kept for that weight alone
    inputs = 2 if number == FLOAT else 5  # of matrices, by twos and threes the same; each is cast for itself
    stream = sizes.hidden * (2 * (1 + normed) * FLOAT + inputs * number)
    heads = (sizes.queries + sizes.keys) * (
        FLOAT + normed * number
    ) + sizes.queries * number  # the last: attention's output
    inner = 4 * sizes.inner * number  # gate, its activation, up, their product
    roots = (2 + sizes.heads + sizes.key_heads) * FLOAT
    held = n * (stream + heads + inner + roots)
    unfused = scores(sizes, batch, kind) > 0
    for b, t, k, masked in batch.blocks:
        held += b * t * (2 * sizes.queries * number + sizes.heads * FLOAT)  # queries, output, log of sums
        repeated = unfused and masked
        held += 2 * b * k * (sizes.queries * FLOAT if repeated else sizes.keys * number)
        held += b * t * k * number if masked else 0  # the mask as numbers to add
    return held + SCORES_KEPT * scores(sizes, batch, kind)


def kept_once(sizes: Sizes, batch: Batch) -> int:
    """Bytes that a pass keeps beside its layers: rotary positions, places, masks, and what the output layer reads."""
    places = sum(INDEX * (b * t + b * k) for b, t, k, _ in batch.blocks) + 2 * INDEX * batch.tokens
    norm = (1 if sizes.adapted else 2) * batch.tokens * sizes.hidden * FLOAT
    return places + batch.seen + 2 * batch.tokens * sizes.head_size * FLOAT + norm + hidden(sizes, batch)


def hidden(sizes: Sizes, batch: Batch) -> int:
    """Bytes of what the output layer reads."""
    return batch.responses * sizes.hidden * FLOAT


def in_backward(sizes: Sizes, batch: Batch, number: int, kind: str) -> int:
    """Bytes of gradients that a layer's backward pass makes and frees."""
    more = batch.tokens * (sizes.inner * number + sizes.hidden * FLOAT)
    return more + SCORES_MORE * scores(sizes, batch, kind)


def in_forward(sizes: Sizes, batch: Batch, number: int, kind: str) -> int:
    """Bytes that a pass without gradients holds at once: the residual stream, and the widest place of a layer."""
    n = batch.tokens
    attention = sum(b * t * 2 * sizes.queries * number + 2 * b * k * sizes.keys * number for b, t, k, _ in batch.blocks)
    attention += n * (sizes.queries + 2 * sizes.keys) * number + batch.seen * number
    attention += (SCORES_KEPT + SCORES_MORE) * scores(sizes, batch, kind)
    widest = max(3 * n * sizes.inner * number, attention)
    return 2 * n * sizes.hidden * FLOAT + widest + batch.seen


def chunk(sizes: Sizes, batch: Batch, kind: str) -> tuple[int, bool]:
    """Bytes of one tensor of tokens x vocabulary as ``forward.over_tokens`` makes it; and whether it makes several."""
    elements = CHUNK_ELEMENTS.get(kind, CHUNK_ELEMENTS["cuda"])
    size = max(1, elements // sizes.vocabulary)
    return min(batch.responses, size) * sizes.vocabulary * FLOAT, batch.responses > size


def room(width: int, tokens: int) -> int:
    """Places of a key-value cache that began with ``width`` tokens and took ``tokens`` more, as ``Qwen3Decoder`` widens it."""
    column, there = width, width + max(ROOM, width // 4)
    while there < width + tokens - 1:
        column = there
        there = column + max(ROOM, column // 4)
    return there
