"""What a driver prints at its end: the jobs, why some of them failed, and how to go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

from rlrt.sweep.source import Closing
from rlrt.sweep.state import JobState, why
from rlrt.sweep.table import Row, counted, table


def print_end(
    out: TextIO, sweep: Path, rows: Iterable[Row], ended: Mapping[Path, JobState], closing: Closing, max_retries: int
) -> None:
    """Print the table that ends a sweep, why jobs failed, and what the source has to say."""
    rows = list(rows)
    print(table(rows), file=out)
    print(f"{counted(rows)}; {sweep}", file=out)
    for folder, state in ended.items():
        if not state.done:
            print(f"{state.name}: {folder.name}: {why(folder, state, sweep, max_retries)}", file=out)
    for line in closing.lines:
        print(line, file=out)


def print_way_on(out: TextIO, sweep: Path, stopped: bool, waiting: int, alive: bool) -> None:
    """Print what the user may do with a sweep that its driver leaves."""
    if stopped:
        print(f"resume the sweep with the same command, or stop its jobs: python -m rlrt.cancel {sweep}", file=out)
        return
    if waiting:
        print(f"{waiting} jobs are not submitted yet; the same command submits them", file=out)
    if alive:
        print(f"watch: python -m rlrt.status {sweep}; the same command drives it again", file=out)
