"""A step's rollouts: sampled when they are asked for, or while the update before them runs (``train.sample_ahead``).

With ``train.sample_ahead`` a thread samples and grades the rollouts of step n + 1 while the update of step n runs:

    take(n)          waits for the rollouts of step n
    begin(n + 1)     hands the weights of now to the engine, those of n - 1 updates, and lets the thread begin
    update n         runs beside the thread
    settled, state   an evaluation and a checkpoint wait for the thread

Only the hand-over holds up both sides. A failure in the thread is raised by whatever waits for it first.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from time import perf_counter
from typing import Any

import torch

from rlrt.sampling.draw import Draw, rollout_metrics, token_count, with_refills
from rlrt.sampling.sampler import Sampler, step_prompts
from rlrt.types import Generation, Grade, Rollout


class Source:
    """Gives each step its rollouts.

    Args:
        sampler: for training.
        train: the config section.
        seed: the run's.
        pending: rollouts of the first step that an earlier life had sampled ahead, from ``state``.
        first: that step.

    Attributes:
        staleness: optimiser steps that the policy had done since its weights sampled the rollouts of the last ``take``.
    """

    def __init__(
        self, sampler: Sampler, train: Any, seed: int, first: int = 1, pending: dict[str, Any] | None = None
    ) -> None:
        self.sampler, self._train, self._seed = sampler, train, seed
        self._pool = ThreadPoolExecutor(1, "rlrt-ahead") if train.sample_ahead else None
        self._future: Future[Draw] | None = None
        self._version = sampler.policy.version
        self._closing = Event()
        self.staleness = 0
        if pending is not None:
            rollouts = restored(pending["rollouts"], sampler, self._prompts(first))
            self._future = done(Draw(rollouts, rollouts, token_count(rollouts)))
            self._version -= pending["staleness"]

    def _prompts(self, step: int) -> Any:
        task = self.sampler.task
        return step_prompts(task.train, self._seed, step, self._train.prompts_per_step, task.shares)

    def _draw(self, step: int, ahead: bool) -> Draw:
        samples, refills = self._train.rollouts_per_prompt, self._train.max_refills
        begin, waited = perf_counter(), self.sampler.waited_s
        draw = with_refills(self.sampler, self._prompts(step), samples, step, refills, load=not ahead)
        draw.seconds["time/grading_s"] = self.sampler.waited_s - waited
        if ahead:
            draw.seconds["time/sampling_s"] = perf_counter() - begin
        return draw

    def take(self, step: int) -> Draw:
        """The rollouts of a step; waits for them where they are being sampled, and notes for how long."""
        if self._future is not None:
            begin = perf_counter()
            draw, self._future = self._future.result(), None
            draw.seconds["time/wait_s"] = perf_counter() - begin
            self.staleness = self.sampler.policy.version - self._version
            return draw
        self.staleness = 0
        return self._draw(step, ahead=False)

    def begin(self, step: int) -> None:
        """Start to sample a step's rollouts by the weights of now; nothing unless ``train.sample_ahead``."""
        if self._pool is not None and step <= self._train.steps:
            self._version = self.sampler.policy.version
            self.sampler.load()
            self._future = self._pool.submit(self._draw, step, True)

    @property
    def exact(self) -> bool:
        """Whether nothing but the weights that are trained says what a rollout's log-probabilities are."""
        return self.sampler.engine.exact

    def metrics(self, draw: Draw) -> dict[str, float]:
        """Numbers of a step's rollouts to log."""
        return rollout_metrics(draw, self._train.rollouts_per_prompt)

    def settled(self) -> None:
        """Wait until nothing is being sampled: the engine is wanted for something else.

        Raises:
            Exception: what the thread ended by, if it failed.
        """
        if self._future is not None:
            self._future.result()

    def state(self) -> dict[str, Any] | None:
        """The rollouts that were sampled ahead, for a checkpoint; waits for them. None if there are none."""
        if self._future is None:
            return None
        rollouts = self._future.result().rollouts
        return {"staleness": self.sampler.policy.version - self._version, "rollouts": [plain(r) for r in rollouts]}

    def closing(self) -> bool:
        """True once the run is over: whatever is still sampled ahead is wanted no more."""
        return self._closing.is_set()

    def close(self) -> None:
        """Wait for the thread, which ends with the responses that are there where the engine asks ``closing``."""
        self._closing.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def done(draw: Draw) -> Future[Draw]:
    """A future that is over."""
    future: Future[Draw] = Future()
    future.set_result(draw)
    return future


def plain(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON; what a function of (seed, step) gives again is left out."""
    generation, grade = rollout.generation, rollout.grade
    return {
        "group": rollout.group,
        "sample": rollout.sample,
        "seed": rollout.seed,
        "token_ids": generation.token_ids,
        "logp": generation.logp_T.tolist(),
        "entropy": generation.entropy_T.tolist(),
        "truncated": generation.truncated,
        "text": rollout.text,
        "grade": [grade.correct, grade.reward, grade.error, dict(grade.parts)],
    }


def restored(rows: list[dict[str, Any]], sampler: Sampler, prompts: Any) -> list[Rollout]:
    """The rollouts that ``plain`` wrote."""
    return [
        Rollout(
            prompt=prompts[row["group"]],
            group=row["group"],
            sample=row["sample"],
            seed=row["seed"],
            prompt_ids=sampler.builder.student(prompts[row["group"]]),
            generation=Generation(
                row["token_ids"], torch.tensor(row["logp"]), torch.tensor(row["entropy"]), row["truncated"]
            ),
            text=row["text"],
            grade=Grade(*row["grade"]),
        )
        for row in rows
    ]
