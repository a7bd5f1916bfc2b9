"""Sources of a sweep's jobs: a grid has all jobs at its start, a search proposes the next ones when there is room."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlrt.sweep.plan import Job
from rlrt.sweep.state import LATER, JobState

Ended = Mapping[Path, JobState]
"""Jobs that will not be started again, by folder."""


@dataclass(frozen=True)
class Closing:
    """How a sweep ended.

    Attributes:
        lines: messages for the user.
        code: the exit code.
        tags: tags for the sweep's parent run in MLflow.
        metrics: metrics for that run.
        step: step of those metrics: how many jobs or trials had ended.
    """

    lines: list[str]
    code: int
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0


class Source(Protocol):
    """The interface of a grid or a search to its driver.

    Attributes:
        prunes: True if a job that was pruned before stays pruned; otherwise it runs to its end.
    """

    prunes: bool

    def begin(self) -> list[Job]:
        """Return the jobs that exist when a driver starts."""
        ...

    def more(self, room: int) -> list[Job]:
        """Return about ``room`` further jobs, or [] if there are none now."""
        ...

    def watch(self, ended: Ended) -> tuple[list[Path], list[str]]:
        """Read the jobs' new metrics; return (folders of jobs to prune, messages for the user)."""
        ...

    def unfinished(self) -> bool:
        """True if the driver must go on without active or waiting jobs, to propose a job or to record a trial's end."""
        ...

    def headline(self) -> str:
        """Return a line about the progress, for the live table."""
        ...

    def close(self, ended: Ended) -> Closing:
        """Return how the sweep ended, or its progress when the driver stops before."""
        ...


class Grid:
    """A fixed list of jobs."""

    prunes = False

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = list(jobs)

    def begin(self) -> list[Job]:
        """Return all jobs."""
        return list(self._jobs)

    def more(self, room: int) -> list[Job]:
        """Return []: the driver already has all jobs."""
        return []

    def watch(self, ended: Ended) -> tuple[list[Path], list[str]]:
        """Return nothing to prune and no messages."""
        return [], []

    def unfinished(self) -> bool:
        """Return False: the driver got all jobs at the start."""
        return False

    def headline(self) -> str:
        """Return "": the live table already shows the counts."""
        return ""

    def close(self, ended: Ended) -> Closing:
        """Return exit code 1 if a job failed or was cancelled, else 0."""
        failed = any(not state.done for state in ended.values())
        return Closing([], int(failed), {}, {}, len(ended))


def waits_for_a_person(state: JobState) -> bool:
    """True if a job ended for a reason outside its run: it was cancelled, the disk is full, or a model is missing."""
    return state.name == "interrupted" or state.failure in LATER


def number_of(value: Any) -> float:
    """Convert a final metric to a number; NaN if it is not one (records store NaN as text)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
