"""What limits a step on cards, on paper: ``python -m benchmarks.limits`` writes it into docs/benchmarks.md.

Qwen3-1.7B on one card and Qwen3-8B on eight, mean responses of 4,096 tokens and all of 20,480, the paper's recipe with vLLM in
the trainer's process. A part of a step is what the step loses if its rate is made infinite: no formula stands here twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.throughput import MEANS, work_of
from rlrt.execution.memory.estimate import estimate
from rlrt.preflight.forecast.decoding import cache_read
from rlrt.preflight.forecast.rates import Rate
from rlrt.preflight.forecast.step import Step, forecast
from rlrt.preflight.forecast.work import Work

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
CASES = (("Qwen3-1.7B", 1), ("Qwen3-8B", 8))
"""Models, and how many cards each has."""
NEVER = Rate(math.inf)
"""Of what takes no time."""


def without(work: Work, **rates: Rate) -> Work:
    """The same work by other rates."""
    return dataclasses.replace(work, rates=dataclasses.replace(work.rates, **rates))


def learning(step: Step) -> float:
    """Seconds of everything but the rollout."""
    return step.scoring + step.teacher + step.update


def parts(work: Work) -> dict[str, float]:
    """Seconds of a step by what they are spent on."""
    step = forecast(work)
    unread = forecast(without(work, bandwidth=NEVER)).rollout
    read = step.rollout - unread
    speed = work.rates.vllm_share.value * work.rates.bandwidth.value
    cache = cache_read(work, -(-work.rollouts // work.layout.processes)) / speed
    headless = dataclasses.replace(work, sizes=dataclasses.replace(work.sizes, head=0))
    whole = learning(step)
    head = whole - learning(forecast(headless))
    matrices = whole - head - learning(forecast(without(headless, linear_bf16=NEVER)))
    unpacked = learning(forecast(without(work, packing_s=Rate(0.0))))
    found = {
        "decoding: keys and values are read": cache,
        "decoding: weights are read": read - cache,
        "decoding: vLLM's scheduler and sampler": unread,
        "training: the layers' matrices": matrices,
        "training: the output layer": head,
        "training: packing on a core": whole - unpacked,
    }
    return found | {"training: attention": step.total - sum(found.values())}


def memory(work: Work) -> str:
    """The trainer's largest phase and the largest part of it, in GB; what vLLM takes of the rest is not counted."""
    phases = {
        name: {part: size for part, size in held.items() if part != "server"}
        for name, held in estimate(work.sizes, work.settings, work.lengths, work.layout).phases.items()
    }
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    largest = max(phases[phase], key=lambda part: phases[phase][part])
    return f"{sum(phases[phase].values()) / 1e9:.1f} ({phase}: {largest} {phases[phase][largest] / 1e9:.1f})"


def cells() -> Iterator[tuple[str, Work]]:
    """Yield the title and the work of each column."""
    for model, cards in CASES:
        for mean in MEANS:
            title = f"{model.removeprefix('Qwen3-')}, {cards} card{'s' * (cards > 1)}, {mean:,}"
            yield title, work_of(model, cards, "vllm", mean)


def table(first: str, columns: Mapping[str, Mapping[str, str]]) -> str:
    """A table in Markdown, a column for each title."""
    lines = [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    rows: dict[str, None] = dict.fromkeys(name for column in columns.values() for name in column)
    lines += [f"| {name} | {' | '.join(column.get(name, '-') for column in columns.values())} |" for name in rows]
    return "\n".join(lines)
