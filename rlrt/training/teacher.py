"""The teacher: weights (the student's own, now or earlier) and the contexts it is shown."""

from __future__ import annotations

import copy
from typing import Any

import torch

from rlrt.distributed import sharding
from rlrt.methods.method import Method


def runs_again(method: Method, minibatches: int) -> bool:
    """True if later mini-batches of a step run the teacher again, for its whole distributions."""
    return method.distils and minibatches > 1


def holds_copy(weights: str, rerun: bool) -> bool:
    """True if the teacher needs weights beside the student's: all kinds but ``live``; ``old`` only if it is run again."""
    return weights in ("snapshot", "ema", "frozen") or (weights == "old" and rerun)


class Teacher:
    """Whose weights score the rollouts given a context.

    Args:
        model: the student, shared with the trainer.
        weights: ``live`` (the student now), ``old`` (at rollout time), ``snapshot`` (every ``sync_steps`` steps),
            ``ema`` (moving average after each optimiser step) or ``frozen`` (the step-0 weights).
        sync_steps: for ``snapshot``.
        ema_rate: share r of the student: theta_T <- (1 - r) theta_T + r theta.
        rerun: whether the teacher is run again after the first optimiser step of a step (``runs_again``).
    """

    def __init__(self, model: Any, weights: str, sync_steps: int, ema_rate: float, rerun: bool) -> None:
        self._student, self.weights, self._sync_steps, self._ema_rate = model, weights, sync_steps, ema_rate
        self._copy = frozen_copy(model) if holds_copy(weights, rerun) else None

    @property
    def model(self) -> Any:
        """The model that scores now."""
        return self._student if self._copy is None else self._copy

    def begin_step(self, step: int) -> None:
        """Follow the student where the copy is taken at a step's start."""
        due = self.weights == "old" or (self.weights == "snapshot" and (step - 1) % self._sync_steps == 0)
        if self._copy is not None and due:
            self._blend(1.0)

    def follow(self) -> None:
        """Follow the student after an optimiser step (``ema``)."""
        if self.weights == "ema":
            self._blend(self._ema_rate)

    @torch.no_grad()
    def _blend(self, rate: float) -> None:
        sharding.drop_gathered(self.model)  # the student settled after its step
        for mine, students in zip(self.model.parameters(), self._student.parameters(), strict=True):
            if rate == 1.0:
                mine.copy_(students)
            else:
                mine.lerp_(students, rate)

    def state(self) -> Any | None:
        """The model whose weights a checkpoint must hold: a copy that moves; None for the others."""
        return self._copy if self.weights in ("snapshot", "ema") else None


def frozen_copy(model: Any) -> Any:
    """A copy of a model that takes no gradient."""
    frozen = copy.deepcopy(model)
    frozen.requires_grad_(False)
    return frozen.eval()
