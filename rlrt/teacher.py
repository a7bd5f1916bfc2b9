"""The teacher: weights (the student's own, now or earlier) and the contexts it is shown."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from rlrt.distributed import sharding
from rlrt.types import Prompt, Rollout


def sibling_contexts(rollouts: Sequence[Rollout], on_unique_correct: str) -> list[str | None]:
    """For each rollout the text of another correct rollout of its group: the first by index, the second for the first.

    A group's only correct rollout gets None (``plain``), its own text (``self``) or the reference (``reference``); a
    group without a correct rollout gets None. So a group has at most two distinct contexts.
    """
    correct: dict[int, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        if rollout.grade.correct:
            correct.setdefault(rollout.group, []).append(i)
    contexts: list[str | None] = []
    for i, rollout in enumerate(rollouts):
        others = [j for j in correct.get(rollout.group, [])[:2] if j != i]
        if others:
            contexts.append(rollouts[others[0]].text)
        elif rollout.grade.correct and on_unique_correct == "self":
            contexts.append(rollout.text)
        elif rollout.grade.correct and on_unique_correct == "reference":
            contexts.append(rollout.prompt.solution)
        else:
            contexts.append(None)
    return contexts


def sibling_of_kind(rollouts: Sequence[Rollout], correct: bool, number: int) -> list[str | None]:
    """For each rollout the text of the ``number``-th other rollout of its group with that verdict, or None."""
    found: dict[int, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        if rollout.grade.correct == correct:
            found.setdefault(rollout.group, []).append(i)
    contexts: list[str | None] = []
    for i, rollout in enumerate(rollouts):
        others = [j for j in found.get(rollout.group, []) if j != i]
        contexts.append(rollouts[others[number]].text if number < len(others) else None)
    return contexts


def reference_text(prompt: Prompt, context: str) -> str | None:
    """What a prompt's data offers the teacher: ``reference``, its solution; ``answer``, its final answer.

    A prompt that states its answer already gives its solution under ``answer`` too (RLSD's rule).
    """
    if context == "answer" and not prompt.states_answer:
        return prompt.final
    return prompt.solution


class Teacher:
    """Whose weights score the rollouts given a context.

    Args:
        model: the student, shared with the trainer.
        weights: ``live`` (the student now), ``old`` (at rollout time), ``snapshot`` (every ``sync_steps`` steps),
            ``ema`` (moving average after each optimiser step) or ``frozen`` (the step-0 weights).
        sync_steps: for ``snapshot``.
        ema_rate: share r of the student: theta_T <- (1 - r) theta_T + r theta.
        keeps_old: hold a copy of the rollout-time weights for ``old``; needed where the teacher is run again after
            the first optimiser step of a step.
    """

    def __init__(self, model: Any, weights: str, sync_steps: int, ema_rate: float, keeps_old: bool) -> None:
        self._student, self.weights, self._sync_steps, self._ema_rate = model, weights, sync_steps, ema_rate
        self._copies = weights in ("snapshot", "ema", "frozen") or (weights == "old" and keeps_old)
        self._copy = frozen_copy(model) if self._copies else None

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
        sharding.settle(self.model)  # the student settled after its step
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
    twin = copy.deepcopy(model)
    twin.requires_grad_(False)
    return twin.eval()
