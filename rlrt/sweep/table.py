"""The table of a sweep's jobs that the driver and ``rlrt.status`` print."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rlrt.records.files import whole
from rlrt.records.printable import one_line, printable
from rlrt.reporting.terminal import WIDTH, duration
from rlrt.reporting.terminal import table as columns
from rlrt.sweep.state import JobState, pace, seconds_left

NAME_WIDTH = 26
"""Characters of a name that are always shown."""
ORDER = ("running", "failed", "lost", "interrupted", "queued", "finished", "pruned")
"""States in the order in which the live table lists jobs if it cannot show them all."""


@dataclass(frozen=True)
class Row:
    """A job in a table: its name, its state, the last records of its run, and its planned steps."""

    name: str
    state: JobState
    records: list[dict[str, Any]]
    steps: int


def shortened(name: str, most: int = NAME_WIDTH, end: int = 12) -> str:
    """Shorten a job's name to a number of characters; its last ``end`` ones, the identity, stay."""
    name = one_line(name)
    return name if len(name) <= most else f"{name[: most - end - 2]}..{name[-end:]}"


def rate(each: float | None) -> str:
    """Format the mean seconds of a step: as steps per second, of slow ones as the time of a step; "-" if it is not known."""
    if each is None:
        return "-"
    per_s = 1 / max(each, 1e-9)
    return f"{duration(each)}/step" if per_s < 0.1 else f"{per_s:.{0 if per_s >= 100 else 1 if per_s >= 1 else 2}f}/s"


def table(rows: Sequence[Row], width: int = WIDTH) -> str:
    """Format name, state, step, last reward, and of what runs the rate and the remaining time, within ``width`` columns; names
    take the room that the other columns leave."""
    running = [row.state.name == "running" for row in rows]
    cells = [["state", "step", "reward", "rate", "left"]]
    for row, runs in zip(rows, running, strict=True):
        last = row.records[-1] if row.records else {}
        step = last.get("step", row.state.step)
        reward = next((r["reward/mean"] for r in reversed(row.records) if "reward/mean" in r), None)
        remaining = seconds_left(row.records, row.steps) if runs else None
        cells.append(
            [
                row.state.name,
                f"{step}/{row.steps}" if row.steps else "-",
                "-" if reward is None else f"{reward:.3f}",
                rate(pace(row.records) if runs else None),
                "-" if remaining is None else duration(remaining),
            ]
        )
    others = sum(max(len(line[i]) for line in cells) + len("  ") for i in range(len(cells[0])))
    room = max(NAME_WIDTH, width - others)
    names = ["job", *(shortened(row.name, room) for row in rows)]
    return columns([[name, *line] for name, line in zip(names, cells, strict=True)])


@dataclass(frozen=True)
class Whole:
    """A sweep in a table: its name, its jobs, and the note of the process that drives it; {} if none does."""

    name: str
    rows: Sequence[Row]
    driver: Mapping[str, Any]

    def per_s(self) -> float:
        """Steps per second of all running jobs together."""
        return sum(1 / max(each, 1e-9) for row in self._running() if (each := pace(row.records)) is not None)

    def left(self) -> float | None:
        """Estimate the seconds until all jobs have ended: those that wait take the places of those that run, at their rate;
        None while none has done a step."""
        longest = [s for row in self._running() if (s := seconds_left(row.records, row.steps)) is not None]
        if not longest:
            return None
        open_ = [row for row in self.rows if row.state.name in ("running", "queued", "interrupted")]
        done = [whole(row.records[-1].get("step")) if row.records else row.state.step for row in open_]
        steps = sum(max(0, row.steps - step) for row, step in zip(open_, done, strict=True))
        return max(*longest, steps / self.per_s()) if self.driver else max(longest)

    def _running(self) -> list[Row]:
        return [row for row in self.rows if row.state.name == "running"]


def overview(sweeps: Sequence[Whole], width: int = WIDTH) -> str:
    """Format a line for each sweep: name, jobs by state, the rate of what runs, the time until all have ended, its driver."""
    cells = [["jobs", "rate", "left", "driver"]]
    for sweep in sweeps:
        remaining, per_s = sweep.left(), sweep.per_s()
        cells.append(
            [
                counted(sweep.rows),
                rate(1 / per_s if per_s else None),
                "-" if remaining is None else duration(remaining),
                f"{whole(sweep.driver.get('pid'))} on {one_line(sweep.driver.get('host'), 20)}"
                if sweep.driver
                else "-",
            ]
        )
    others = sum(max(len(line[i]) for line in cells) + len("  ") for i in range(len(cells[0])))
    names = ["sweep", *(shortened(sweep.name, max(NAME_WIDTH, width - others), 8) for sweep in sweeps)]
    return columns([[name, *line] for name, line in zip(names, cells, strict=True)], left=2)


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
        text = table(ordered[:room], size.columns - 1) + (f"\n({len(rows) - room} more)" if len(rows) > room else "")
        text += f"\n{counted(rows)}" + (f"; {headline}" if headline else "")
        lines = [line[: max(20, size.columns - 1)] for line in text.splitlines()]
        self._wipe()
        self._out.write("\n".join(lines) + "\n")
        self._lines = len(lines)
        self._out.flush()
