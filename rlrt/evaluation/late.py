"""When a run's held-out problems were first solved, by its checkpoints, each evaluated alike (``--first-solved-after``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.paths import saved_steps
from rlrt.statistics import share_intervals

NAMES = ("early", "late", "never", "lost")


def steps_of(run: Path, after: int) -> list[int]:
    """Return the steps at which a run can be asked: before training, and at each checkpoint.

    Raises:
        UserError: if no checkpoint is later than ``after``.
    """
    saved = sorted(saved_steps(run))
    if after < 0 or not any(step > after for step in saved):
        raise UserError(
            f"--first-solved-after {after}: {run} needs a checkpoint of a later step, found "
            f"{', '.join(map(str, saved)) or 'none'}; train with train.save_every and a large train.keep_last."
        )
    return [0, *(step for step in saved if step)]


def when_solved(rows: Mapping[int, Sequence[Mapping[str, Any]]], after: int) -> dict[str, dict[str, Any]]:
    """Say of every suite which share of its problems was first solved when.

    A problem counts as solved at a step if one of its samples is correct. With more samples, or more checkpoints, fewer
    problems count as late.

    Args:
        rows: those of ``rlrt.evaluation.checkpoint.measured`` by step; a problem counts that has one at every step.
        after: the step that divides early from late.

    Returns:
        by suite ``problems``, and shares of them as (value, low, high), bootstrap over problems: ``early`` (first solved at
        ``after`` or before), ``late`` (first solved at a later step), ``never``; ``lost`` (solved once, and not at the last
        step).
    """
    solved: dict[str, dict[str, dict[int, bool]]] = {}
    for step, those in rows.items():
        for row in those:
            solved.setdefault(str(row["suite"]), {}).setdefault(str(row["prompt_id"]), {})[step] = row["correct"] > 0
    found: dict[str, dict[str, Any]] = {}
    for suite, problems in solved.items():
        figures = []
        for by_step in (by_step for by_step in problems.values() if by_step.keys() == rows.keys()):
            first = min((step for step, is_solved in by_step.items() if is_solved), default=None)
            early, late = first is not None and first <= after, first is not None and first > after
            lost = first is not None and not by_step[max(by_step)]
            figures.append([float(early), float(late), float(first is None), float(lost)])
        if figures:
            found[suite] = {"problems": len(figures)} | dict(zip(NAMES, share_intervals([figures]), strict=True))
    return found
