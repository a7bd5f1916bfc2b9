"""The trainer's one forward path: from prompts and responses to log-probabilities, for student, teacher and reference alike.

Two things keep it small. Rows that share a prompt run it once, and nothing is padded (``rlrt.model.packed``; models that
``rlrt.model.paths`` finds unfit take the plain path, padded on the right). Logits are made for some tokens at a time, forward
and backward, so that tokens x vocabulary is never held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlrt.distributed import sharding
from rlrt.distributed.world import ALONE, World, parts
from rlrt.methods.entropy import entropy
from rlrt.methods.statistic import Statistic
from rlrt.model import packed
from rlrt.model.head import Compute, OverTokens, Task, linear, log_softmax, output_layer
from rlrt.model.offload import saving
from rlrt.model.precision import computing, dtype_of

CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Logits held at once, by kind of device: 110 tokens of Qwen3's vocabulary in memory, 883 on a GPU, where few would idle it. In
memory more than 32 MiB, on purpose: blocks just below that left holes of 7 GB in the C library's heap (docs/LOG.md)."""


@dataclass
class Row:
    """One sequence to score: a prompt and the response to it, as token ids."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def micro_batches(model: Any, rows: Sequence[Row], token_budget: int) -> list[list[int]]:
    """Indices of the rows in batches that ``response_hidden`` computes on at most ``token_budget`` tokens for.

    Rows of one prompt stand together. A single row over the budget makes a batch of its own.
    """
    if not packed.enabled(model):
        return padded_batches([len(row) for row in rows], token_budget)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(row.prompt_ids), []).append(i)
    batches: list[list[int]] = []
    room = 0
    for prompt, group in groups.items():
        shared = False  # whether the open batch holds this prompt
        for i in group:
            own = len(rows[i].response_ids) - 1
            if not batches or own + (0 if shared else len(prompt)) > room:
                batches.append([])
                room, shared = token_budget, False
            room -= own + (0 if shared else len(prompt))
            shared = True
            batches[-1].append(i)
    return batches


def padded_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in batches whose padded size (rows x longest) stays within the budget, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def response_hidden(model: Any, rows: Sequence[Row]) -> Tensor:
    """Hidden states that the output layer reads at every response token of the rows, row after row: (N, H).

    Differentiable unless gradients are off.
    """
    if not packed.enabled(model):
        return plain_hidden(model, rows)
    prompts: dict[tuple[int, ...], int] = {}
    owner = [prompts.setdefault(tuple(row.prompt_ids), len(prompts)) for row in rows]
    device = next(model.parameters()).device
    responses = [list(row.response_ids[:-1]) for row in rows]
    packing = packed.pack(list(prompts), owner, responses, device, packed.flash_dtype(model))
    with computing(model), saving(model):
        hidden_MH = packed.hidden_states(model, packing)
    # A response's first token is predicted at the prompt's last, the others at the response's own token before.
    start, length = packing.start_S, packing.length_S
    last_B = (start + length - 1)[: len(prompts)][owner]
    count_B = length[len(prompts) :] + 1
    first_B = count_B.cumsum(0) - count_B
    index_N = torch.arange(int(count_B.sum())) + (start[len(prompts) :] - 1 - first_B).repeat_interleave(count_B)
    index_N[first_B] = last_B
    return hidden_MH.index_select(0, index_N.to(device))


def plain_hidden(model: Any, rows: Sequence[Row]) -> Tensor:
    """``response_hidden`` by the model's own forward pass on padded rows."""
    device = next(model.parameters()).device
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    keep = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor([*row.prompt_ids, *row.response_ids])
        keep[i, len(row.prompt_ids) - 1 : len(row) - 1] = True
    # Rows are padded on the right and attention is causal: no real token ever attends to padding.
    with computing(model), saving(model):
        hidden = model.base_model(input_ids=ids[:, :-1].to(device), use_cache=False).last_hidden_state
    return hidden[keep[:, :-1].to(device)]


def log_probabilities(model: Any, hidden_CH: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) of the output layer, as logarithms: logp_CV, float32.

    The support is the model's whole vocabulary, as in the engine: no token is left out on either side. Who computes several
    chunks takes ``output_layer(model)`` once, since that casts its weight.
    """
    return log_softmax(output_layer(model).logits(hidden_CH), temperature)


def over_tokens(
    model: Any, hidden_NH: Tensor, temperature: float, compute: Compute, elements: int | None = None
) -> tuple[Tensor, ...]:
    """Apply ``compute`` to the log-probabilities of all tokens, some tokens at a time.

    Args:
        model: whose output layer it is.
        hidden_NH: from ``response_hidden``.
        temperature: of the softmax.
        compute: from logp_CV and the slice of the N tokens that it belongs to, to tensors of C values each, whose gradient
            is of the log-probabilities alone.
        elements: log-probabilities held at once; None: ``CHUNK_ELEMENTS``.

    Returns:
        tensors of N values. Their backward pass makes the log-probabilities anew, some tokens at a time, and runs once.
    """
    count, head = len(hidden_NH), linear(model)
    elements = CHUNK_ELEMENTS.get(hidden_NH.device.type, CHUNK_ELEMENTS["cuda"]) if elements is None else elements
    size = max(1, elements // int(model.config.vocab_size))
    chunks = [slice(begin, min(begin + size, count)) for begin in range(0, max(1, count), size)]
    with_gradient = torch.is_grad_enabled()
    if with_gradient and head is not None:
        task = Task(compute, chunks, dtype_of(model), temperature)
        columns: tuple[Tensor, ...] = OverTokens.apply(hidden_NH, head.weight, head.bias, task)
        return columns
    layer = output_layer(model)

    def part(hidden_CH: Tensor, where: slice) -> tuple[Tensor, ...]:
        return compute(log_softmax(layer.logits(hidden_CH), temperature), where)

    if with_gradient and len(chunks) > 1:
        pieces = [
            checkpoint(part, hidden_NH[where], where, use_reentrant=False, preserve_rng_state=False) for where in chunks
        ]
    else:
        pieces = [part(hidden_NH[where], where) for where in chunks]
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


def response_logp(model: Any, rows: Sequence[Row], temperature: float) -> Tensor:
    """logp_NV at every response token of the rows, whole: for small vocabularies, and as the reference of the chunked ways."""
    return log_probabilities(model, response_hidden(model, rows), temperature)


def pad(rows: Sequence[Tensor], width: int, fill: float = 0.0) -> Tensor:
    """One-dimensional tensors of several lengths as one (B, width) tensor."""
    result = rows[0].new_full((len(rows), width), fill) if rows else torch.zeros(0, width)
    for i, row in enumerate(rows):
        result[i, : len(row)] = row
    return result


@torch.no_grad()
def score(
    model: Any,
    rows: Sequence[Row],
    temperature: float,
    token_budget: int,
    width: int,
    world: World = ALONE,
    statistics: Sequence[Statistic] = (),
) -> list[Tensor]:
    """Log-probability of every response token, the exact entropy of its distribution, and further statistics of it.

    Each rank of ``world`` runs a share of the rows; all ranks get the result.

    Returns:
        logp_BT, entropy_BT (nats) and one value_BT for each statistic, on the CPU, zero after a row's end; T = ``width``.
    """
    share = parts([len(row) for row in rows], world.size)[world.rank]
    mine = [rows[i] for i in share]
    batches = micro_batches(model, mine, token_budget)
    passes = world.most(len(batches))  # asked before the first pass: in it the ranks wait for each other
    scored: list[tuple[int, tuple[Tensor, ...]]] = []
    with evaluating(model):
        for batch in batches:
            scored += list(
                zip(batch, score_batch(model, [mine[i] for i in batch], temperature, statistics), strict=True)
            )
        for _ in range(passes - len(batches)):  # all ranks gather sharded weights, or none does
            sharding.run(model, lambda: (response_hidden(model, rows[:1]),))
    values_BT = [torch.zeros(len(rows), width) for _ in range(2 + len(statistics))]
    for i, row_values in world.gather([(share[i], row_values) for i, row_values in scored]):
        for value_BT, value_T in zip(values_BT, row_values, strict=True):
            value_BT[i, : len(value_T)] = value_T
    return values_BT


def score_batch(
    model: Any, rows: Sequence[Row], temperature: float, statistics: Sequence[Statistic] = ()
) -> list[tuple[Tensor, ...]]:
    """Log-probabilities, entropies and further statistics of each row's response tokens, in one forward pass."""
    device = next(model.parameters()).device
    token_N = torch.cat([torch.as_tensor(r.response_ids) for r in rows]).to(device)

    def of_sampled(logp_CV: Tensor, where: slice) -> tuple[Tensor, ...]:
        token_C = token_N[where]
        more = (statistic(logp_CV, token_C) for statistic in statistics)
        return logp_CV.gather(-1, token_C[:, None])[:, 0], entropy(logp_CV), *more

    columns = sharding.run(model, lambda: over_tokens(model, response_hidden(model, rows), temperature, of_sampled))
    lengths = [len(row.response_ids) for row in rows]
    return list(zip(*(column.cpu().split(lengths) for column in columns), strict=True))


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode for a while."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
