"""From seconds of phases to rates of the card: four equations, each pair with two unknowns.

Scoring and teacher run the same responses behind prompts of different length, so they tell matrices from attention. A
rollout of all rows and one of a single group run the same number of tokens, so they tell what is read from kernel launches.
"""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu.throughput import FEW, GROUP, PROMPT, PROMPTS, Given, Table
from benchmarks.throughput import mask_pair_s, packing_token_s
from rlrt.execution.memory.sizes import Sizes, sizes_of
from rlrt.preflight.forecast.rates import rates_file, rates_of

COMMAND = "python -m benchmarks.gpu"
BF16 = 2
"""Bytes of a number."""


def solved(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """x and y of ``a x + b y = c`` and ``d x + e y = f``; None where they are no positive numbers."""
    (a, b, c), (d, e, f) = first, second
    determinant = a * e - b * d
    if determinant == 0:
        return None
    x, y = (c * e - b * f) / determinant, (a * f - c * d) / determinant
    return (x, y) if x > 0 and y > 0 else None


def equation(sizes: Sizes, tokens: int, before: int, seconds: float, token_s: float) -> tuple[float, float, float]:
    """Operations of matrices and of causal attention in a forward pass over the benchmark's rows, and its seconds on the card.

    Args:
        tokens: of each response.
        before: tokens of the prompt of each group.
        seconds: of the pass, packing included.
        token_s: seconds of packing for each token.
    """
    rows = PROMPTS * GROUP
    run = rows * tokens + PROMPTS * before
    pairs = rows * tokens * (before + tokens / 2) + PROMPTS * before**2 / 2
    attention = 4 * sizes.queries * sizes.layers * pairs
    return float(2 * (sizes.matrices + sizes.head) * run), float(attention), seconds - run * token_s


def read_bytes(sizes: Sizes, tokens: int, rows: int) -> float:
    """Bytes that decoding some rows reads: weights once for each token of all rows, and each row's keys and values."""
    weights = BF16 * (sizes.matrices + sizes.head) * tokens
    return float(weights + rows * 2 * sizes.keys * BF16 * sizes.layers * tokens * (PROMPT + tokens / 2))


def measured_rates(
    sizes: Sizes, tokens: int, seconds: Mapping[str, Sequence[float]], bandwidth: float | None, token_s: float
) -> dict[str, float]:
    """Rates by name, from the median seconds of each phase; those that do not come out positive are left out.

    Args:
        tokens: of each response.
        seconds: of each phase, step by step; and of ``FEW``.
        bandwidth: of the card, bytes per second; None: not known, and no share of it either.
        token_s: seconds of packing for each token.
    """
    took = {phase: statistics.median(values) for phase, values in seconds.items()}
    rates = {"packing_token_s": token_s}
    passes = solved(
        equation(sizes, tokens, PROMPT, took["scoring"], token_s),
        equation(sizes, tokens, PROMPT + tokens, took["teacher"], token_s),
    )
    if passes is not None:
        rates |= {"linear_bf16": 1 / passes[0], "causal_bf16": 1 / passes[1]}
    launched = float(tokens * sizes.layers)
    decoding = solved(
        (launched, read_bytes(sizes, tokens, PROMPTS * GROUP), took["rollout"]),
        (launched, read_bytes(sizes, tokens, GROUP), took[FEW]),
    )
    if decoding is not None:
        rates["hf_layer_s"] = decoding[0]
        if bandwidth is not None:
            rates["hf_share"] = 1 / decoding[1] / bandwidth
    return rates


def write(given: Given, table: Table) -> None:
    """Write the rates to ``--rates``, with command, date and card as their source, and print them."""
    from transformers import Qwen3Config

    card = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    sizes = sizes_of(Qwen3Config(**json.loads(given.config.read_text())))
    known = rates_of(card)
    bandwidth = known.bandwidth.value if known is not None else None
    found = measured_rates(sizes, given.tokens, table.seconds, bandwidth, packing_token_s()) | {
        "mask_pair_s": mask_pair_s()
    }
    content: dict[str, Any] = rates_file(card, found, COMMAND, str(datetime.date.today()))
    given.rates.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{given.rates}: {', '.join(f'{name} {value:.3g}' for name, value in found.items())}")
