"""A step's rollouts: sampled when they are asked for, or while the update before them runs (``train.sample_ahead``)."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from rlrt.sampling.draw import Draw, token_count, with_refills
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
        self.staleness = 0
        if pending is not None:
            rollouts = restored(pending["rollouts"], sampler, self._prompts(first))
            self._future = done(Draw(rollouts, rollouts, token_count(rollouts)))
            self._version -= pending["staleness"]

    def _prompts(self, step: int) -> Any:
        task = self.sampler.task
        return step_prompts(task.train, self._seed, step, self._train.prompts_per_step, task.shares)

    def _draw(self, step: int, load: bool) -> Draw:
        samples, refills = self._train.rollouts_per_prompt, self._train.max_refills
        return with_refills(self.sampler, self._prompts(step), samples, step, refills, load)

    def take(self, step: int) -> Draw:
        """The rollouts of a step; waits for them where they are being sampled."""
        if self._future is not None:
            draw, self._future = self._future.result(), None
            self.staleness = self.sampler.policy.version - self._version
            return draw
        self.staleness = 0
        return self._draw(step, load=True)

    def begin(self, step: int) -> None:
        """Start to sample a step's rollouts by the weights of now; nothing unless ``train.sample_ahead``."""
        if self._pool is not None and step <= self._train.steps:
            self._version = self.sampler.policy.version
            self.sampler.load()
            self._future = self._pool.submit(self._draw, step, False)

    def settled(self) -> None:
        """Wait until nothing is being sampled: the engine is wanted for something else."""
        if self._future is not None:
            self._future.exception()

    def state(self) -> dict[str, Any] | None:
        """The rollouts that were sampled ahead, for a checkpoint; None if there are none."""
        if self._future is None:
            return None
        rollouts = self._future.result().rollouts
        return {"staleness": self.sampler.policy.version - self._version, "rollouts": [plain(r) for r in rollouts]}

    def close(self) -> None:
        """Wait for the thread."""
        if self._pool is not None:
            self._pool.shutdown()


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
