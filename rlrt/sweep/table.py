"""The table of a sweep's jobs that the driver and ``rlrt.status`` print."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rlrt.records.printable import one_line, printable
from rlrt.reporting.terminal import duration
from rlrt.reporting.terminal import table as columns
from rlrt.sweep.state import JobState, seconds_left

NAME_WIDTH = 40
ORDER = ("running", "failed", "lost", "interrupted", "queued", "finished", "pruned")
"""States in the order in which the live table lists jobs if it cannot show them all."""


@dataclass(frozen=True)
class Row:
    """A job in a table: its name, its state, the last records of its run, and its planned steps."""

    name: str
    state: JobState
    records: list[dict[str, Any]]
    steps: int


def shortened(name: str) -> str:
    """Shorten a job's name to the table's width; the identity at its end stays."""
    name = one_line(name)
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 14]}..{name[-12:]}"


def table(rows: Sequence[Row]) -> str:
    """Format name, state, step, last reward and remaining time of each job, within 80 columns."""
    lines = [["job", "state", "step", "reward", "left"]]
    for row in rows:
        last = row.records[-1] if row.records else {}
        step = last.get("step", row.state.step)
        reward = next((r["reward/mean"] for r in reversed(row.records) if "reward/mean" in r), None)
        remaining = seconds_left(row.records, row.steps) if row.state.name == "running" else None
        lines.append(
            [
                shortened(row.name),
                row.state.name,
                f"{step}/{row.steps}" if row.steps else "-",
                "-" if reward is None else f"{reward:.3f}",
                "-" if remaining is None else duration(remaining),
            ]
        )
    return columns(lines)


def counted(rows: Sequence[Row]) -> str:
    """Format the number of jobs in each state."""
    counts = Counter(row.state.name for row in rows)
    return ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])


class Live:
    """Redraws the table in a terminal; without a terminal it prints a line when a job's state changes."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._live, self._lines, self._shown_at = out, out.isatty(), 0, 0.0

    def end(self) -> None:
        """Erase the table."""
        self._wipe()
        self._out.flush()

    def _wipe(self) -> None:
        if self._lines:
            self._out.write(f"\r\x1b[{self._lines}A\x1b[J")
            self._lines = 0

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._wipe()
        self._out.write(printable(text) + "\n")
        self._out.flush()

    def changed(self, name: str, state: JobState) -> None:
        """Print a job's new state, unless the live table shows it."""
        if not self._live:
            self.say(f"{state.name}: {one_line(name)}")

    def due(self) -> bool:
        """True if the table should be drawn now: once a second, in a terminal."""
        return self._live and time.monotonic() - self._shown_at >= 1.0

    def show(self, rows: Sequence[Row], headline: str) -> None:
        """Draw all jobs, or as many as the terminal can show, sorted by ``ORDER``."""
        self._shown_at = time.monotonic()
        size = shutil.get_terminal_size()
        room = max(3, size.lines - 5)
        ordered = sorted(rows, key=lambda row: ORDER.index(row.state.name) if row.state.name in ORDER else len(ORDER))
        text = table(ordered[:room]) + (f"\n({len(rows) - room} more)" if len(rows) > room else "")
        text += f"\n{counted(rows)}" + (f"; {headline}" if headline else "")
        lines = [line[: max(20, size.columns - 1)] for line in text.splitlines()]
        self._wipe()
        self._out.write("\n".join(lines) + "\n")
        self._lines = len(lines)
        self._out.flush()
