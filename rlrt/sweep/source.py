"""Where a sweep's jobs come from: a grid knows them all at its start, a search proposes the next where there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rlrt.sweep.plan import Job
from rlrt.sweep.state import JobState

Ended = Mapping[Path, JobState]
"""Jobs that will not be started again, by folder."""


@dataclass(frozen=True)
class Closing:
    """How a sweep ended.

    Attributes:
        lines: for a person.
        code: the exit code.
        tags: for the sweep's own run in MLflow.
        metrics: likewise.
        step: the step of those metrics: how many jobs or trials had ended.
    """

    lines: list[str]
    code: int
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0


class Source(Protocol):
    """What a driver asks of a grid or of a search.

    Attributes:
        prunes: whether a job that was pruned before is to stay so; otherwise it is wanted whole.
    """

    prunes: bool

    def begin(self) -> list[Job]:
        """The jobs there are when a driver starts."""
        ...

    def more(self, room: int) -> list[Job]:
        """Further jobs, about ``room`` of them; none where there are none (yet)."""
        ...

    def watch(self, ended: Ended) -> tuple[list[Path], list[str]]:
        """Take note of what the jobs have reported; returns (folders of jobs to prune, lines for a person)."""
        ...

    def unfinished(self) -> bool:
        """Whether there is more to come where no job lives or waits: a job to propose, or an end to take note of."""
        ...

    def headline(self) -> str:
        """Where it stands, for the live table."""
        ...

    def close(self, ended: Ended) -> Closing:
        """How it ended, or where it stands when its driver leaves."""
        ...


class Grid:
    """A fixed list of jobs."""

    prunes = False

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = list(jobs)

    def begin(self) -> list[Job]:
        """All of them."""
        return list(self._jobs)

    def more(self, room: int) -> list[Job]:
        """None."""
        return []

    def watch(self, ended: Ended) -> tuple[list[Path], list[str]]:
        """A grid prunes nothing."""
        return [], []

    def unfinished(self) -> bool:
        """A grid gave all its jobs at the start."""
        return False

    def headline(self) -> str:
        """Nothing of its own."""
        return ""

    def close(self, ended: Ended) -> Closing:
        """1 where a job failed or was cancelled."""
        failed = any(not state.done for state in ended.values())
        return Closing([], int(failed), {}, {}, len(ended))
