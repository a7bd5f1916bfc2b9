"""``python -m rlrt.status [SWEEP or RUN]``: print state, step, last reward, rate and time left of every job of a
sweep, or of one run; with ``--all`` a line for each sweep."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TextIO

from rlrt.config.refused import guarded
from rlrt.errors import UserError
from rlrt.records.files import is_file, mapping, read_json, whole
from rlrt.records.killed import KILLED, is_gone
from rlrt.records.lease import LEASE, holder
from rlrt.records.printable import one_line, printable
from rlrt.records.stored_config import stored_config
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import WIDTH, positive, say
from rlrt.sweep.standing import SILENT, driver_of, drivers_of, rows_of, states_of
from rlrt.sweep.state import JobState, job_folders, last_records, sweep_folder, sweeps_here
from rlrt.sweep.table import Row, Whole, counted, overview, table

WATCH_S = 2.0
"""Default seconds between two tables with --watch."""


UNSEEN = "whether it still runs cannot be seen from here"
RUNS = Path("outputs/runs")
"""Default parent folder of single runs."""


def terminal_width() -> int:
    """Return the columns of the terminal; without one those of a usual one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH


def all_sweeps() -> tuple[str, bool]:
    """Return a line for each sweep, the one that was modified last first, and whether any of them is still active.

    Raises:
        UserError: if there is none.
    """
    jobs = {sweep: job_folders(sweep) for sweep in sweeps_here()}
    states, unknown = states_of([folder for folders in jobs.values() for folder in folders])  # one question to SLURM
    ended = {f for f, (state, _) in states.items() if state.done}
    drivers = drivers_of([sweep for sweep, folders in jobs.items() if not ended.issuperset(folders)])
    wholes = []
    for sweep, folders in jobs.items():
        running = {f for f in folders if states[f][0].name == "running"}  # of the others no record is read
        rows = [Row(f.name, states[f][0], last_records(f) if f in running else [], states[f][1]) for f in folders]
        wholes.append(Whole(sweep.name, rows, drivers.get(sweep, {})))
    active = bool(drivers) or any(state.alive for state, _ in states.values())
    return "\n".join([overview(wholes, terminal_width()), *([SILENT] if unknown else [])]), active


def status(sweep: Path) -> str:
    """Format a sweep's table, its counts, the errors of failed jobs and the path of the logs."""
    states, unknown = states_of(job_folders(sweep))
    rows = rows_of(states)
    lines = [table(rows, terminal_width()), counted(rows)]
    if unknown:
        lines.append(SILENT)
    if who := driver_of(sweep):
        lines.append(f"driven by pid {whole(who.get('pid'))} on {one_line(who.get('host'), 80)}")
    for folder, (state, _) in states.items():
        if state.name in ("failed", "lost"):
            lines.append(f"{state.name}: {one_line(folder.name)}: {state.error or KILLED}")
    lines.append(one_line(f"logs: {sweep}/JOB/log.txt"))
    return "\n".join(lines)


def run_folder(path: Path | None) -> Path | None:
    """Return the folder of a single run, or of one job of a sweep, that a path or a name means; None for anything else."""
    for folder in () if path is None else (path, RUNS / path):
        if os.path.isdir(folder) and not job_folders(folder):
            return folder if any(is_file(folder / name) for name in ("manifest.json", "summary.json")) else None
    return None


def asked_for(path: Path | None) -> Path:
    """Return the folder of the sweep or the run that was asked for; None means the sweep that was modified last.

    Raises:
        UserError: if there is no such sweep or run.
    """
    run = run_folder(path)
    if run is not None:
        return run
    try:
        return sweep_folder(path)
    except UserError as error:
        if path is None:
            raise
        raise UserError(f"{str(error).rstrip('.')}, and no run either (manifest.json); give one of the two.") from None


def run_state(run: Path) -> tuple[JobState, int]:
    """Return the state and the planned steps of a run. One whose process was on another machine is running, as far as anybody
    here can tell; its ``error`` is then ``UNSEEN``."""
    ((state, steps),) = states_of([run])[0].values()
    if state.name == "lost" and holder(run / LEASE) and not is_gone(run, read_json(run / "summary.json")):
        state = replace(state, name="running", error=UNSEEN, alive=True)
    if not steps:
        with contextlib.suppress(UserError):
            steps = whole(mapping(stored_config(run).get("train")).get("steps"))
    return state, steps


def status_of_run(run: Path) -> str:
    """Format the state of one run, why it ended where it did not finish, what to do, and the path of its log."""
    state, steps = run_state(run)
    lines = [table([replace(row, name=run.resolve().name) for row in rows_of({run: (state, steps)})], terminal_width())]
    again = "the same command goes on from its newest checkpoint"
    if state.name == "lost":
        lines.append(f"lost: {state.error or KILLED}; {again}")
    elif state.name == "failed":
        lines.append(f"failed: {state.error or 'no reason is noted'}")
    elif state.name == "interrupted":
        lines.append(f"interrupted: {again}")
    elif state.name == "running":
        who = holder(run / LEASE)
        unseen = f"; {state.error}" if state.error else ""
        lines.append(f"run by pid {whole(who.get('pid'))} on {one_line(who.get('host'), 80)}{unseen}")
    lines.append(one_line(f"log: {run}/log.txt"))
    return "\n".join(lines)


def told(folder: Path) -> tuple[str, bool]:
    """Return what there is to say of a sweep or a run, and whether any of it is still active."""
    if run_folder(folder) is not None:
        active = run_state(folder)[0].alive
        return status_of_run(folder), active
    active = bool(driver_of(folder)) or any(s.alive for s, _ in states_of(job_folders(folder))[0].values())
    return status(folder), active


def watch(tell: Callable[[], tuple[str, bool]], every: float, out: TextIO) -> None:
    """Print a table repeatedly until no driver and no job is active; in a terminal it is redrawn in place.

    Args:
        tell: gives the table, and whether anything is active.
        every: seconds between two tables.
    """
    live, height = out.isatty(), 0
    while True:
        text, active = tell()
        if live and height:
            out.write(f"\x1b[{height}A\x1b[J")
        out.write(printable(text) + ("\n" if live else "\n\n"))
        out.flush()
        width = shutil.get_terminal_size().columns
        height = sum(max(1, -(-len(line) // width)) for line in text.split("\n"))
        if not active:
            return
        time.sleep(every)


def main() -> None:
    """Print the table of a sweep's jobs, or the state of one run."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.status", description=main.__doc__)
    parser.add_argument(
        "sweep", type=Path, nargs="?", help="folder or name of a sweep or a run; the newest sweep otherwise"
    )
    parser.add_argument("--all", action="store_true", help="a line for each sweep here, the newest first")
    parser.add_argument(
        "--watch", action="store_true", help="print the table again every few seconds until all jobs end"
    )
    parser.add_argument("--every", type=positive, default=WATCH_S, help="seconds between two tables with --watch")
    arguments = parser.parse_args()

    def act() -> None:
        if arguments.all and arguments.sweep is not None:
            raise UserError(f"--all: expected no sweep beside it, got {arguments.sweep}; leave one of them out.")
        tell = all_sweeps if arguments.all else partial(told, asked_for(arguments.sweep))
        if arguments.watch:
            watch(tell, arguments.every, sys.stdout)
        else:
            say(tell()[0])

    try:
        sys.exit(guarded(act))
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
