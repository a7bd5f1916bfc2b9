"""What ``train.sample_ahead`` brings, by the run's own loop with real waits: ``python -m benchmarks.ahead``.

An engine and an update that only wait take the seconds that ``rlrt.preflight.forecast`` gives them (rates assumed or measured:
``--rates FILE``), in half a second instead. Everything between them is the run's: ``train``, ``Source``, ``Sampler``, grading,
the hand-over of weights, ``time/...``. So the overlap that is printed is the one that the schedule has, not the one that a
formula promises; the formula stands beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch

from benchmarks.throughput import sizes, work_of
from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.schema import Settings
from rlrt.engines.engine import Engine
from rlrt.engines.vllm_common import response
from rlrt.model.load import load as load_model
from rlrt.preflight.forecast.decoding import SERVER_SHARE
from rlrt.preflight.forecast.rates import H100, Rates, read_rates
from rlrt.preflight.forecast.step import forecast
from rlrt.sampling.sampler import Sampler
from rlrt.sampling.source import Source
from rlrt.tasks.base import Task
from rlrt.training.evaluation import Suite
from rlrt.training.loop import Run, train
from rlrt.training.update import StepResult
from rlrt.types import Generation, Grade, Prompt, Rollout, Sampling

LONGEST_S = 0.5
"""Seconds that the longest part of a step takes here."""
STEPS = 6
HANDOVER = 3e9
"""Bytes of weights a second that reach a server, assumed: a file in shared memory, or NCCL at a tenth of what it can."""


def nothing(*_: Any) -> None:
    """Do nothing."""


@dataclass
class Clockwork(Engine):
    """An engine that only waits: ``on_load`` and ``on_sample`` say how. A response's only token is the version of the weights.

    Attributes:
        on_load: called with the version.
        on_sample: called with True in training and False in evaluation, before the first response.
    """

    exact: ClassVar[bool] = False
    on_load: Callable[[int], None] = nothing
    on_sample: Callable[[bool], None] = nothing
    max_new_tokens: int = 4
    temperature: float = 1.0
    version: int = field(default=-1, init=False)

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Take a version of the weights."""
        if version != self.version:
            begin = time.perf_counter()
            self.on_load(version)
            self.version = version
            self.synced_s, self.synced_bytes = self.synced_s + time.perf_counter() - begin, self.synced_bytes + 1

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """One token for each seed."""
        self.on_sample(sampling is None)
        for i, own in enumerate(seeds):
            for g in range(len(own)):
                yield i, g, Generation([self.version], torch.tensor([-1.0]), torch.tensor([1.0]), truncated=False)


class Questions(Task):
    """Prompts whose every second response is correct."""

    def __init__(self, count: int = 64) -> None:
        self.train = self.heldout = [Prompt(f"q{i}", f"question {i}", i) for i in range(count)]
        self._asked = 0

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """A verdict."""
        self._asked += 1
        return Grade(self._asked % 2 == 0, float(self._asked % 2 == 0))

    def canonical(self, prompt: Prompt, text: str) -> str:
        """The text."""
        return text


def clockwork(
    settings: Settings,
    engine: Engine,
    position: int = 0,
    pending: dict[str, Any] | None = None,
    source: type[Source] = Source,
    **more: Any,
) -> tuple[Run, list[dict[str, float]]]:
    """A run of the real loop whose engine and update only wait (``learn`` is to be replaced), and the list of its records."""
    minibatches = settings.train.minibatches
    policy = SimpleNamespace(
        version=position * minibatches, model=None, stop_ids=[], special_ids=[], text=lambda ids: f"answer {ids}"
    )
    builder = SimpleNamespace(student=lambda prompt: [1], opening="")
    task = Questions()
    sampler = Sampler(engine, policy, builder, task, seed=settings.seed)  # type: ignore[arg-type]
    suite = Suite("", Sampler(engine, policy, builder, task, seed=0), task.heldout[:2])  # type: ignore[arg-type]
    records: list[dict[str, float]] = []
    run = Run(
        source=source(sampler, settings.train, settings.seed, position + 1, pending),
        suites=[suite],
        learner=SimpleNamespace(policy=policy),  # type: ignore[arg-type]
        train=settings.train,
        eval=settings.eval,
        position=position,
        record=lambda step, metrics: records.append({"step": step} | metrics),
        **{"keep_samples": nothing, "save": nothing} | more,
    )
    return run, records


def updating(run: Run, wait: Callable[[int], None]) -> Any:
    """Replace the update by one that calls ``wait`` with the step and then counts its optimiser steps; a context."""
    policy: Any = run.learner.policy

    def learn(learner: Any, rollouts: list[Rollout], signals: Any, lr: float) -> StepResult:
        wait(signals.step)
        policy.version += run.train.minibatches
        return StepResult({})

    return mock.patch("rlrt.training.loop.learn", learn)


def settings_of(ahead: bool, *more: str) -> Settings:
    """The recipe's schedule with small numbers."""
    words = (
        "engine=vllm_server", "engine.url=http://127.0.0.1:1", "tracking=none", f"train.sample_ahead={str(ahead).lower()}",
        f"train.steps={STEPS}", "train.prompts_per_step=4", "train.rollouts_per_prompt=2", "train.minibatches=2",
        "train.eval_every=0", "eval.samples_per_prompt=2",
    )  # fmt: skip
    return load(composed([*words, *more]))


@dataclass(frozen=True)
class Seconds:
    """What a step's parts take on their cards, seconds.

    Attributes:
        rollout: sampling and grading.
        update: scoring, teacher and update.
        handover: weights to the engine.
    """

    rollout: float
    update: float
    handover: float


def measured(parts: Seconds, ahead: bool) -> tuple[float, float]:
    """Run the schedule: mean seconds of a step from the third on, as on the cards, and the share of them that the trainer
    waited for rollouts (0 where it is not measured, since nothing is sampled ahead)."""
    scale = max(parts.rollout, parts.update) / LONGEST_S
    engine = Clockwork(
        on_load=lambda version: time.sleep(parts.handover / scale),
        on_sample=lambda training: time.sleep(parts.rollout / scale) if training else None,
    )
    run, records = clockwork(settings_of(ahead), engine)
    with updating(run, lambda step: time.sleep(parts.update / scale)):
        train(run)
    run.source.close()
    steady = records[3:-1]  # the last step samples nothing ahead

    def mean(name: str) -> float:
        return sum(r.get(name, 0.0) for r in steady) / len(steady)

    return mean("time/step_s") * scale, mean("time/wait_share")


def shared(model: str, cards: int, mean: int, rates: Rates) -> Seconds:
    """Engine and trainer on the same cards, one after the other."""
    one = forecast(work_of(model, cards, "vllm", mean, rates))
    return Seconds(one.rollout, one.scoring + one.teacher + one.update, 0.0)


def separate(model: str, engine: int, trainer: int, mean: int, rates: Rates) -> Seconds:
    """Engine and trainer on cards of their own, each engine card with an engine of its own."""
    work = work_of(model, engine, "vllm", mean, rates)
    whole = dataclasses.replace(work.settings.engine, gpu_memory_utilization=SERVER_SHARE)
    served = dataclasses.replace(work, settings=dataclasses.replace(work.settings, engine=whole))
    trained = forecast(work_of(model, trainer, "vllm", mean, rates))
    weights = work.number * sizes(model).weights
    update = trained.scoring + trained.teacher + trained.update
    return Seconds(forecast(served).rollout, update, weights / HANDOVER)


def line(model: str, cards: int, engine: int, mean: int, rates: Rates) -> str:
    """One line of the table."""
    together, apart = shared(model, cards, mean, rates), separate(model, engine, cards - engine, mean, rates)
    one_after_other, _ = measured(apart, ahead=False)
    beside, waited = measured(apart, ahead=True)
    formula = max(apart.rollout, apart.update) + apart.handover
    limit = "rollout" if apart.rollout > apart.update else "update"
    numbers = (
        f"{together.rollout + together.update:,.0f}", f"{apart.rollout:,.0f}", f"{apart.update:,.0f}",
        f"{apart.handover:.1f}", f"{one_after_other:,.0f}", f"{beside:,.0f}", f"{formula:,.0f}", f"{waited:.0%}", limit,
    )  # fmt: skip
    return f"| {model} | {cards} | {engine} | {mean:,} | {' | '.join(numbers)} |"


def per_response(tokens: int, count: int = 10) -> float:
    """Milliseconds of one core, and of Python's lock, that the thread spends on a server's answer of some tokens."""
    _, tokenizer = load_model("embedded", None, "sdpa", lambda weights: None)
    ids = [5 + i % 50 for i in range(tokens)]
    entries = [{"token": f"token_id:{i}", "logprob": -0.1234567, "bytes": None, "top_logprobs": []} for i in ids]
    answer = json.dumps({"token_ids": ids, "logprobs": {"content": entries}})
    begin = time.thread_time()
    for _ in range(count):
        choice = json.loads(answer)
        logps = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        tokenizer.decode(response(choice["token_ids"], logps, "length", [0], {"a"}, "a").token_ids)
    return 1000 * (time.thread_time() - begin) / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=Path, help="rates that python -m benchmarks.gpu --rates FILE measured")
    given = parser.parse_args()
    rates = read_rates(given.rates) if given.rates else H100
    names = (
        "model", "cards", "engine's", "tokens", "shared cards", "rollout", "update", "hand-over", "without", "ahead",
        "by formula", "trainer waits", "limit",
    )  # fmt: skip
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for mean in (4096, 20480):
        for model, cards, engines in (("Qwen3-1.7B", 8, (2, 4)), ("Qwen3-8B", 8, (4,)), ("Qwen3-8B", 16, (4, 8))):
            for engine in engines:
                print(line(model, cards, engine, mean, rates), flush=True)
    for tokens in (4096, 20480):
        print(
            f"\na server's answer of {tokens:,} tokens keeps the thread busy for {per_response(tokens):.0f} ms of one core"
        )


if __name__ == "__main__":
    main()
