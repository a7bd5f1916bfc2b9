"""Seconds of decoding: rows at once as memory allows, waves of rows, bytes read for each token.

Decoding is bound by what it reads: for each token the weights once for all rows, and the keys and values of each row. All rows
count with the mean length. Only the longest row of a wave (``engine=hf``) or of the whole call (vLLM) counts with its own, as
it would be on average if lengths were exponential: mean x (1 + 1/2 + ... + 1/rows), at most ``engine.max_new_tokens``.

Left out: the prompts' own pass, the traffic of sampling (3 to 5 % where rows are long), verifiers, and the hand-over of weights
to vLLM.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rlrt.execution.memory.estimate import HEADROOM, estimate, persistent, samples_in_process, total
from rlrt.preflight.forecast.work import Work

SERVER_SHARE = 0.9
"""Share of a card that a vLLM server takes: vLLM's own default. A server that no run started is assumed to have one card."""


def decode_s(work: Work, prompts: int, samples: int) -> float:
    """Return the seconds of one call of the engine: ``samples`` responses to each of ``prompts`` prompts."""
    rows = prompts * samples
    if rows == 0:
        return 0.0
    if samples_in_process(work.settings):
        return in_waves(work, -(-rows // work.layout.processes), samples)
    return by_vllm(work, rows if on_server(work) else -(-rows // work.layout.processes))


def in_waves(work: Work, rows: int, group: int) -> float:
    """Return the seconds of ``engine=hf`` for one process's rows: whole groups at once, wave after wave."""
    rates, at_once = work.rates, whole_groups(work, rows, group)
    bandwidth = rates.hf_share.value * rates.bandwidth.value
    token = work.sizes.layers * rates.hf_layer_s.value + weight_bytes(work) / bandwidth
    waves = math.ceil(rows / at_once)
    return waves * longest(work, at_once) * token + cache_read(work, rows) / bandwidth


def whole_groups(work: Work, rows: int, group: int) -> int:
    """Return the rows that ``engine=hf`` decodes at once, of ``rows`` in groups."""
    return min(rows, max(1, rows_at_once(work)[0] // group) * group)


def training_rows(work: Work) -> int:
    """Return the rows that one process, or the server, decodes at once in a training step."""
    if samples_in_process(work.settings):
        mine = -(-work.rollouts // work.layout.processes)
        return whole_groups(work, mine, work.settings.train.rollouts_per_prompt)
    mine = work.rollouts if on_server(work) else -(-work.rollouts // work.layout.processes)
    return min(mine, rows_at_once(work)[0])


def by_vllm(work: Work, rows: int) -> float:
    """Return the seconds of vLLM for the rows of one card, or of a server's cards, which hold one model together: a row that
    ends makes room for the next."""
    rates = work.rates
    at_once = min(rows, rows_at_once(work)[0])
    bandwidth = rates.vllm_share.value * rates.bandwidth.value * server_cards(work)
    tokens = max(rows * work.response / at_once, longest(work, rows))
    token = rates.vllm_token_s.value + weight_bytes(work) / bandwidth
    return tokens * token + cache_read(work, rows) / bandwidth


def longest(work: Work, rows: int) -> float:
    """Return the expected tokens of the longest of some responses."""
    harmonic = sum(1 / n for n in range(1, rows + 1))
    return min(float(work.limit), work.response * harmonic)


def weight_bytes(work: Work) -> int:
    """Return the bytes of weights that decoding a token reads."""
    return work.number * (work.sizes.matrices + work.sizes.head)


def token_bytes(work: Work) -> int:
    """Return the bytes of keys and values of one token."""
    return 2 * work.sizes.keys * work.number * work.sizes.layers


def cache_read(work: Work, rows: int) -> float:
    """Return the bytes of keys and values that decoding some rows reads in all."""
    return rows * token_bytes(work) * work.response * (work.lengths.prompt + work.response / 2)


def on_server(work: Work) -> bool:
    """True if a vLLM server samples, on cards of its own."""
    return work.settings.engine.url is not None or work.settings.engine.start


def server_cards(work: Work) -> int:
    """Return the cards that share one vLLM's weights and cache: those of a server that the run starts, else one."""
    return max(1, int(work.settings.engine.cards_beside(True)))


def rows_at_once(work: Work) -> tuple[int, bool]:
    """Return the rows that one process decodes at once, up to ``engine.max_rows``, and False if not one fits beside the rest.

    With ``engine=hf`` the memory estimate says how many fit at their full length; with vLLM the share of the card that is left
    for its cache, divided by a row at half its mean length.
    """
    wanted = int(work.settings.engine.max_rows)
    if samples_in_process(work.settings):
        return rows_that_fit(work, wanted)
    row = token_bytes(work) * (work.lengths.prompt + work.response / 2)
    room = int(vllm_cache(work) / row)
    return max(1, min(wanted, room)), room >= 1


def rows_that_fit(work: Work, wanted: int) -> tuple[int, bool]:
    """Return the largest ``engine.max_rows`` up to ``wanted`` whose rollout fits a card by the memory estimate."""

    def fits(rows: int) -> bool:
        engine: Any = work.settings.engine
        if any(f.name == "max_rows" for f in dataclasses.fields(engine)):
            engine = dataclasses.replace(engine, max_rows=rows)
        settings = dataclasses.replace(work.settings, engine=engine)
        return estimate(work.sizes, settings, work.lengths, work.layout).total("rollout") <= work.device_bytes

    low, high = 0, wanted
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return max(1, low), low >= 1


def vllm_cache(work: Work) -> float:
    """Return the bytes that vLLM has for keys and values: its share of its cards without its own copy of the weights."""
    share = SERVER_SHARE if on_server(work) else work.settings.engine.gpu_memory_utilization
    if share is None:
        taken: float = work.device_bytes - total(persistent(work.sizes, work.settings, work.layout)) - HEADROOM
    else:
        taken = share * work.device_bytes * server_cards(work)
    return taken - work.number * work.sizes.weights
