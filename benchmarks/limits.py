"""What limits a step on cards, on paper: ``python -m benchmarks.limits`` writes it into docs/benchmarks.md.

Qwen3-1.7B on one card and Qwen3-8B on eight, mean responses of 4,096 tokens and all of 20,480, the paper's recipe with vLLM in
the trainer's process. A part of a step is what the step loses if its rate is made infinite: no formula stands here twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.speed.report import Report
from benchmarks.throughput import MEANS, work_of
from rlrt.execution.memory.estimate import estimate
from rlrt.preflight.forecast.decoding import cache_read
from rlrt.preflight.forecast.rates import Rate
from rlrt.preflight.forecast.step import Step, forecast
from rlrt.preflight.forecast.work import Work

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
CASES = (("Qwen3-1.7B", 1), ("Qwen3-8B", 8))
"""Models, and how many cards each has."""
BEFORE = ((2066, 39.5), (39415, 39.5), (719, 53.3), (9655, 53.3))
"""Seconds of a step and the trainer's peak in GB at commit b9ed18b by the same sums: attention under masks, weights gathered
in float32."""
NEVER = Rate(math.inf)
"""Of what takes no time."""
INTRODUCTION = """## What limits a step on H100s, on paper

Written by `python -m benchmarks.limits`. By assumed rates, never measured; `docs/throughput.md` has the rates and what the sums
leave out. The paper's recipe, 2,048 rollouts a step, mean responses as the columns say; vLLM in the trainer's process. Seconds
of a step by what they are spent on: what the step loses if that rate is made infinite.
"""
NOTE = """*Before* is commit b9ed18b. Not in the sums: traffic between cards, half of what it was, since weights are gathered in
bfloat16; and checkpoints, for which training now stands still while tensors are copied to the host, not while they are written
(103 s for 1.7B and 491 s for 8B at 200 MB/s). `train.old_logp=sampler` is another loss (docs/methods.md).
"""


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
    unpacked = learning(forecast(without(work, packing_token_s=Rate(0.0), mask_pair_s=Rate(0.0))))
    found = {
        "decoding: keys and values are read": cache,
        "decoding: weights are read": read - cache,
        "decoding: vLLM's scheduler and sampler": unread,
        "training: the layers' matrices": matrices,
        "training: the output layer": head,
        "training: packing on a core": whole - unpacked,
    }
    return found | {"training: attention": step.total - sum(found.values())}


def scored_by_sampler(work: Work) -> Work:
    """The same work under ``train.old_logp=sampler``."""
    train = dataclasses.replace(work.settings.train, old_logp="sampler")
    return dataclasses.replace(work, settings=dataclasses.replace(work.settings, train=train))


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


def column(work: Work, before: tuple[int, float]) -> dict[str, str]:
    """The cells of one column."""
    found = parts(work)
    limit = max(found, key=lambda name: found[name])
    cells = {name: f"{seconds:,.0f}" for name, seconds in found.items()}
    return cells | {
        "**the step**": f"**{forecast(work).total:,.0f}**",
        "before": f"{before[0]:,}",
        "with `train.old_logp=sampler`": f"{forecast(scored_by_sampler(work)).total:,.0f}",
        "what limits": f"{limit.partition(': ')[2]} ({found[limit] / forecast(work).total:.0%})",
        "trainer's peak, GB": memory(work),
        "before, GB": f"{before[1]}",
    }


def page() -> str:
    """The part of the page."""
    columns = {title: column(work, before) for (title, work), before in zip(cells(), BEFORE, strict=True)}
    return f"{INTRODUCTION}\n{table('seconds', columns)}\n\n{NOTE}"


def main() -> None:
    """Write the part into docs/benchmarks.md."""
    Report(PAGE).place("limits", page())


if __name__ == "__main__":
    main()
