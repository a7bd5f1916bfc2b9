"""The teacher: weights (the student's own, now or earlier) and the contexts it is shown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlrt.distributed import sharding
from rlrt.methods.method import Method
from rlrt.model.lora import adapters


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
        beside: the teacher's model with the student's weights of now (``rlrt.model.twin``), where it ``holds_copy``; else None.
        weights: ``live`` (the student now), ``old`` (at rollout time), ``snapshot`` (every ``sync_steps`` steps),
            ``ema`` (moving average after each optimiser step) or ``frozen`` (the step-0 weights).
        sync_steps: for ``snapshot``.
        ema_rate: share r of the student: theta_T <- (1 - r) theta_T + r theta.

    With adapters theta is their factors A and B, and the base weights are one. The product of averaged factors is not the
    average of the products, whose rank would grow with every step. One step of ``ema`` is apart from the averaged product by

        (1 - r) B_T A_T + r B A - [(1 - r) B_T + r B] [(1 - r) A_T + r A] = r (1 - r) (B - B_T) (A - A_T),

    which is of second order in how far the student moved from its teacher.
    """

    def __init__(self, model: Any, beside: Any | None, weights: str, sync_steps: int, ema_rate: float) -> None:
        self._student, self._beside, self.weights = model, beside, weights
        self._sync_steps, self._ema_rate = sync_steps, ema_rate

    @property
    def model(self) -> Any:
        """The model that scores now."""
        return self._student if self._beside is None else self._beside

    def begin_step(self, step: int) -> None:
        """Follow the student where the copy is taken at a step's start."""
        due = self.weights == "old" or (self.weights == "snapshot" and (step - 1) % self._sync_steps == 0)
        if self._beside is not None and due:
            self._blend(1.0)

    def follow(self) -> None:
        """Follow the student after an optimiser step (``ema``)."""
        if self.weights == "ema":
            self._blend(self._ema_rate)

    @torch.no_grad()
    def _blend(self, rate: float) -> None:
        sharding.drop_gathered(self.model)  # the student settled after its step
        students = own_weights(self._student)
        for name, mine in own_weights(self.model).items():
            if rate == 1.0:
                mine.copy_(students[name])
            else:
                mine.lerp_(students[name], rate)

    def state(self) -> dict[str, Tensor] | None:
        """The weights by name that a checkpoint must hold: those that a teacher of its own moves; None for other teachers."""
        return own_weights(self.model) if self.weights in ("snapshot", "ema") else None


def own_weights(model: Any) -> dict[str, Tensor]:
    """The weights by name that a model beside the student may have of its own: with adapters these alone."""
    return adapters(model) or dict(model.named_parameters())
