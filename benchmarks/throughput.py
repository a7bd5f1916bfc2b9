"""Seconds of a step on paper, for the paper's recipe: ``python -m benchmarks.throughput > docs/throughput.md``.

Qwen3-0.6B to 8B, 1 to 16 cards, both engines, mean responses of 4,096 tokens and all of 20,480. The sums are those of
``rlrt.preflight.forecast``; ``--rates FILE`` takes what ``python -m benchmarks.gpu --rates FILE`` measured in place of what is
assumed. ``--packing`` measures the rates that need no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.execution.memory.estimate import HEADROOM, Layout, Lengths, estimate, persistent, total
from rlrt.execution.memory.sizes import Sizes, sizes_of
from rlrt.model.packed import pack
from rlrt.preflight.forecast.rates import H100, MEANINGS, Rates, read_rates
from rlrt.preflight.forecast.step import PHASES, Step, forecast
from rlrt.preflight.forecast.work import TAUGHT, TRAINED, Work
from rlrt.reporting.terminal import duration

CONFIGS = Path(__file__).parents[1] / "tests" / "model" / "hub_configs"
MODELS = {"Qwen3-0.6B": "qwen3_0.6b", "Qwen3-1.7B": "qwen3_1.7b", "Qwen3-4B": "qwen3_4b", "Qwen3-8B": "qwen3_8b"}
CARDS = (1, 8, 16)
ENGINES = ("hf", "vllm")
MEANS = (4096, 20480)
PROMPT = 256
"""Tokens of a prompt, assumed."""
RECIPE = ("experiment=paper/qwen3_8b/rlrt", "tracking=none")
"""The recipe is one for all models; each model's sizes replace those of its own."""
SHARES = f"{TRAINED:.0%} of the rollouts are trained on and {TAUGHT:.0%} are shown to a teacher"
COMMAND = "python -m benchmarks.throughput"


@functools.cache
def sizes(model: str) -> Sizes:
    """The sizes of one of ``MODELS``."""
    from transformers import Qwen3Config

    return sizes_of(Qwen3Config(**json.loads((CONFIGS / f"{MODELS[model]}.json").read_text())))


@functools.cache
def recipe(engine: str) -> Settings:
    """The paper's settings with an engine."""
    more = ("engine.release_memory=true",) if engine == "vllm" else ()
    return load(composed([*RECIPE, f"engine={engine}", *more]))


def work_of(model: str, cards: int, engine: str, mean: int, rates: Rates = H100) -> Work:
    """The input of one cell: sharded over several cards; vLLM gets the share of a card that the trainer leaves it."""
    settings, one = recipe(engine), sizes(model)
    layout = Layout("cuda", cards, cards > 1, int(rates.memory.value))
    lengths = Lengths(PROMPT, settings.teacher.max_context_tokens)
    if engine == "vllm":
        left = 1 - (total(persistent(one, settings, layout)) + HEADROOM) / rates.memory.value
        changed = dataclasses.replace(settings.engine, gpu_memory_utilization=max(0.0, left))
        settings = dataclasses.replace(settings, engine=changed)
    return Work(one, settings, lengths, layout, rates, float(mean), settings.eval.prompts)


def trains(work: Work) -> bool:
    """True if scoring, update and the optimiser's step fit a card by the memory estimate."""
    whole = estimate(work.sizes, work.settings, work.lengths, work.layout)
    return max(whole.total(p) for p in ("scoring", "gradient", "step")) <= work.device_bytes


def cells(model: str, cards: int, mean: int, rates: Rates) -> list[str]:
    """One line of the table."""
    works = {engine: work_of(model, cards, engine, mean, rates) for engine in ENGINES}
    steps = {engine: forecast(work) for engine, work in works.items()}
    learned, fits = steps["hf"], trains(works["hf"])

    def rolled(step: Step) -> str:
        return f"{step.rollout:,.0f} ({step.rows})" if step.fits else "no room"

    line = [model.removeprefix("Qwen3-"), str(cards), *(rolled(steps[engine]) for engine in ENGINES)]
    line += [f"{getattr(learned, phase):,.0f}" if fits else "no room" for phase in PHASES[1:]]
    for step in steps.values():
        line.append(duration(step.total) if step.fits and fits else "no room")
    line += [duration(step.evaluation) if step.fits else "no room" for step in steps.values()]
    return [*line, f"{learned.checkpoint:,.0f}"]


HEADING = ("model", "cards", "rollout hf (rows)", "rollout vllm (rows)", "scoring", "teacher", "update")
HEADING = (*HEADING, "step hf", "step vllm", "evaluation hf", "evaluation vllm", "checkpoint")


def table(mean: int, rates: Rates) -> str:
    """The table of one mean length, in Markdown."""
    rows = [HEADING, ("---",) * len(HEADING)]
    rows += [tuple(cells(model, cards, mean, rates)) for model in MODELS for cards in CARDS]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rates_table(rates: Rates) -> str:
    """The table of rates with their sources, in Markdown."""
    lines = ["| rate | value | unit | of what | source |", "|---|---|---|---|---|"]
    for name, rate in rates.named().items():
        unit, meaning = MEANINGS[name]
        lines.append(f"| `{name}` | {rate.value:.3g} | {unit} | {meaning} | {rate.source} |")
    return "\n".join(lines)


def page(rates: Rates, words: str = COMMAND) -> str:
    """The whole page.

    Args:
        words: the command that prints it.
    """
    train = recipe("hf").train
    rollouts = train.prompts_per_step * train.rollouts_per_prompt
    given = f"""# Seconds of a step, on paper

Written by `{words} > docs/throughput.md`: do not edit.

**By {rates.source()}.** `python -m benchmarks.gpu --rates FILE` measures some of them on a card, and
`python -m benchmarks.throughput --rates FILE` prints this page with what it measured.

- The recipe is that of `experiment=paper/MODEL/rlrt`: {rollouts:,} rollouts a step, {train.minibatches} mini-batches,
  bfloat16 computation, activations recomputed.
- Assumed of the rollouts: prompts of {PROMPT} tokens, {SHARES}.
- Several cards share weights and optimiser (`distributed.strategy=fsdp`).
- `engine=vllm` samples in the trainer's process with `engine.release_memory=true`. It has what weights and optimiser leave of
  the card, less {HEADROOM / 1e9:.0f} GB.
- In brackets: rows that a card decodes at once. *No room*: it does not fit a card, by the memory estimate.
- `rlrt/preflight/forecast/step.py` and `decoding.py` beside it say what the sums leave out. Take them as good to a factor of 2.
"""
    parts = [given]
    for mean in MEANS:
        longest = recipe("hf").engine.max_new_tokens
        title = f"Responses of {mean:,} tokens on average" if mean < longest else f"All responses of {mean:,} tokens"
        parts.append(f"## {title}\n\nSeconds, unless a unit stands there.\n\n{table(mean, rates)}\n")
    parts.append(f"## Rates of an {rates.card}\n\n{rates_table(rates)}\n")
    return "\n".join(parts)


def packed_s(responses: int, tokens: int, half: torch.dtype | None, times: int) -> float:
    """CPU seconds in which one core packs some responses to one prompt; the best of some times.

    Args:
        tokens: of each response.
        half: precision of the flash kernel; None: under masks.
    """
    rows = [list(range(tokens - 1))] * responses
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    took = []
    for _ in range(times):
        begin = time.process_time()
        pack([list(range(PROMPT))], [0] * responses, rows, torch.device("cpu"), half)
        took.append(time.process_time() - begin)
    torch.set_num_threads(threads)
    return min(took)


def packing_token_s(responses: int = 8, tokens: int = 20480, times: int = 10) -> float:
    """CPU seconds of packing for each token, without masks."""
    return packed_s(responses, tokens, torch.bfloat16, times) / (responses * tokens + PROMPT)


def mask_pair_s(tokens: int = 10240, times: int = 10) -> float:
    """CPU seconds of packing under a mask for each pair of query and key, of a response alone."""
    return packed_s(1, tokens, None, times) / (tokens * (tokens + PROMPT))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page, or the measurement of packing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=Path, metavar="FILE", help="what python -m benchmarks.gpu --rates FILE wrote")
    parser.add_argument(
        "--packing", action="store_true", help="measure packing on this machine's CPU, and print nothing else"
    )
    given = parser.parse_args(arguments)
    if given.packing:
        print(f"packing_token_s {packing_token_s():.1e} CPU seconds a token; mask_pair_s {mask_pair_s():.1e} a pair")
        for rows in (1, 8):
            took = 1e3 * packed_s(rows, 20480, torch.bfloat16, 10)
            print(f"{rows} responses of 20,480 tokens without masks: {took:.1f} ms of one core")
        print(f"1 response of 20,480 tokens under a mask: {1e3 * packed_s(1, 20480, None, 3):.0f} ms of one core")
        return 0
    try:
        rates = read_rates(given.rates) if given.rates else H100
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page(rates, COMMAND + (f" --rates {given.rates}" if given.rates else "")), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
