"""How a driver ends: its report and run in MLflow, and what it prints: the jobs, why some failed, and how to go on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TextIO

from rlrt.records.mlflow import MlflowTracker
from rlrt.sweep.parent import closing_report, end_parent
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


def warn(text: str) -> None:
    """Print a driver's warning beside its table."""
    print(f"WARNING: {text}", file=sys.stderr, flush=True)


def end_in_mlflow(
    sweep: Path,
    parent: MlflowTracker | None,
    closing: Closing | None,
    alive: bool,
    stopped: bool,
    say: Callable[[str], None],
) -> None:
    """Write a sweep's report, and end its parent run in MLflow, unless another driver goes on with both.

    Args:
        closing: how the sweep ended; None if another driver took it over.
        alive: True if jobs run on.
        stopped: True after a Ctrl-C.
    """
    if closing is None:
        if parent is not None:
            parent.abandon()
        return
    if not alive and sweep.is_dir():
        closing_report(sweep, parent, say)
    if parent is not None:
        how = "KILLED" if stopped else "FAILED" if closing.code else "FINISHED"
        words = {"tags": closing.tags, "metrics": closing.metrics, "step": closing.step}
        end_parent(sweep, parent, "RUNNING" if alive else how, words)
