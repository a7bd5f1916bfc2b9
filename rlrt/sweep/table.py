"""The table of a sweep's jobs, for the driver and ``rlrt.status``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TextIO

from rlrt.sweep.state import JobState
from rlrt.terminal import table as columns

Row = tuple[str, JobState, dict[str, Any], int]
"""Name, state, last record and planned steps of a job."""
NAME_WIDTH = 44


def shortened(name: str) -> str:
    """A job's name in the table's width; its identity, at the end, stays."""
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 14]}..{name[-12:]}"


def table(rows: Sequence[Row]) -> str:
    """Name, state, step and last reward of each job; within 80 columns."""
    lines = [["job", "state", "step", "reward"]]
    for name, state, record, steps in rows:
        step = int(record.get("step", state.step))
        reward = f"{record['reward/mean']:.3f}" if "reward/mean" in record else "-"
        lines.append([shortened(name), state.name, f"{step}/{steps}", reward])
    return columns(lines)


class Live:
    """Rewrites the table in a terminal; elsewhere prints a line when a job's state changes."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._live, self._lines, self._seen, self._shown = out, out.isatty(), 0, dict[str, str](), 0.0

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines:
            self._out.write(f"\x1b[{self._lines}A\x1b[J")

    def show(self, rows: Sequence[Row], ended: int) -> None:
        """Show where the jobs are."""
        if not self._live:
            for name, state, _, _ in rows:
                if self._seen.get(name) != state.name:
                    self._seen[name] = state.name
                    self._out.write(f"{state.name}: {name}\n")
            self._out.flush()
            return
        if time.monotonic() - self._shown < 1.0:
            return
        self._shown = time.monotonic()
        active = [row for row in rows if row[1].name == "running"][:20]
        text = table(active) + f"\n{ended} of {len(rows)} jobs ended"
        if self._lines:
            self._out.write(f"\x1b[{self._lines}A\x1b[J")
        self._out.write(text + "\n")
        self._lines = text.count("\n") + 1
        self._out.flush()
