"""The table of a sweep's jobs, for the driver and ``rlrt.status``."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rlrt.reporting.terminal import duration
from rlrt.reporting.terminal import table as columns
from rlrt.sweep.state import JobState, seconds_left

NAME_WIDTH = 40
ORDER = ("running", "failed", "lost", "interrupted", "queued", "finished", "pruned")
"""States in the order of a table that cannot show all jobs."""


@dataclass(frozen=True)
class Row:
    """A job in a table: its name, its state, the last records of its run, and the steps it is to do."""

    name: str
    state: JobState
    records: list[dict[str, Any]]
    steps: int


def shortened(name: str) -> str:
    """A job's name in the table's width; its identity, at the end, stays."""
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 14]}..{name[-12:]}"


def table(rows: Sequence[Row]) -> str:
    """Name, state, step, last reward and time left of each job; within 80 columns."""
    lines = [["job", "state", "step", "reward", "left"]]
    for row in rows:
        last = row.records[-1] if row.records else {}
        step = int(last.get("step", row.state.step))
        reward = next((r["reward/mean"] for r in reversed(row.records) if "reward/mean" in r), None)
        left = seconds_left(row.records, row.steps) if row.state.name == "running" else None
        lines.append(
            [
                shortened(row.name),
                row.state.name,
                f"{step}/{row.steps}" if row.steps else "-",
                "-" if not isinstance(reward, float) else f"{reward:.3f}",
                "-" if left is None else duration(left),
            ]
        )
    return columns(lines)


def counted(rows: Sequence[Row]) -> str:
    """How many jobs are in which state."""
    counts = Counter(row.state.name for row in rows)
    return ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])


class Live:
    """Rewrites the table in a terminal; elsewhere prints a line when a job's state changes."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._live, self._lines, self._shown = out, out.isatty(), 0, 0.0

    def end(self) -> None:
        """Wipe the table."""
        self._wipe()
        self._out.flush()

    def _wipe(self) -> None:
        if self._lines:
            self._out.write(f"\r\x1b[{self._lines}A\x1b[J")
            self._lines = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._wipe()
        self._out.write(text + "\n")
        self._out.flush()

    def changed(self, name: str, state: JobState) -> None:
        """A job's state is another one than before."""
        if not self._live:
            self.say(f"{state.name}: {name}")

    def due(self) -> bool:
        """Whether a table should be shown now: once a second, in a terminal."""
        return self._live and time.monotonic() - self._shown >= 1.0

    def show(self, rows: Sequence[Row], headline: str) -> None:
        """Show all jobs, or as many as the terminal holds: those first that a person would want to see."""
        self._shown = time.monotonic()
        size = shutil.get_terminal_size()
        room = max(3, size.lines - 5)
        shown = sorted(rows, key=lambda row: ORDER.index(row.state.name) if row.state.name in ORDER else len(ORDER))
        text = table(shown[:room]) + (f"\n({len(rows) - room} more)" if len(rows) > room else "")
        text += f"\n{counted(rows)}" + (f"; {headline}" if headline else "")
        lines = [line[: max(20, size.columns - 1)] for line in text.splitlines()]
        self._wipe()
        self._out.write("\n".join(lines) + "\n")
        self._lines = len(lines)
        self._out.flush()
