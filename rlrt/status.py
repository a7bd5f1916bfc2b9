"""``python -m rlrt.status [SWEEP]``: print state, step, last reward and log of every job of a sweep."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rlrt.config.refused import guarded
from rlrt.records.files import mapping, read_json, whole
from rlrt.records.killed import KILLED
from rlrt.records.lease import holder, is_held
from rlrt.records.printable import one_line, printable
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import positive, say
from rlrt.sweep.launchers import slurm_states
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import DONE, JobState, job_folders, job_state, last_records, slurm_id, sweep_folder
from rlrt.sweep.table import Row, counted, table

WATCH_S = 2.0
"""Default seconds between two tables with --watch."""


def states_of(folders: Sequence[Path]) -> tuple[dict[Path, tuple[JobState, int]], bool]:
    """Return (state and planned steps of every job, True if SLURM was queried and did not answer)."""
    specs = {f: read_json(f / SPEC) for f in folders}
    ids = {f: i for f, s in specs.items() if (i := slurm_id(s))}
    open_ids = [i for f, i in ids.items() if read_json(f / "summary.json").get("state") not in DONE]
    slurm = slurm_states(open_ids)
    external = {} if slurm is None else {f: slurm[i] for f, i in ids.items() if i in slurm}
    steps = {f: whole(mapping(mapping(s.get("plain")).get("train")).get("steps")) for f, s in specs.items()}
    return {f: (job_state(f, external.get(f), specs[f]), steps[f]) for f in folders}, slurm is None


def status(sweep: Path) -> str:
    """Format a sweep's table, its counts, the errors of failed jobs and the path of the logs."""
    states, unknown = states_of(job_folders(sweep))
    rows = [
        Row(f.name, state, last_records(f) if state.name != "queued" else [], steps)
        for f, (state, steps) in states.items()
    ]
    lines = [table(rows), counted(rows)]
    if unknown:
        lines.append("squeue does not answer: the states of jobs on SLURM come from their folders alone")
    if is_held(sweep / "driver"):
        who = holder(sweep / "driver")
        lines.append(f"driven by pid {whole(who.get('pid'))} on {one_line(who.get('host'), 80)}")
    for folder, (state, _) in states.items():
        if state.name in ("failed", "lost"):
            lines.append(f"{state.name}: {one_line(folder.name)}: {state.error or KILLED}")
    lines.append(one_line(f"logs: {sweep}/JOB/log.txt"))
    return "\n".join(lines)


def watch(sweep: Path, every: float, out: TextIO) -> None:
    """Print the table repeatedly until no driver and no job is active; in a terminal the table is redrawn in place."""
    live, height = out.isatty(), 0
    while True:
        text = status(sweep)
        if live and height:
            out.write(f"\x1b[{height}A\x1b[J")
        out.write(printable(text) + ("\n" if live else "\n\n"))
        out.flush()
        width = shutil.get_terminal_size().columns
        height = sum(max(1, -(-len(line) // width)) for line in text.split("\n"))
        if not is_held(sweep / "driver") and not any(s.alive for s, _ in states_of(job_folders(sweep))[0].values()):
            return
        time.sleep(every)


def main() -> None:
    """Print the table of a sweep's jobs."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.status", description=main.__doc__)
    parser.add_argument("sweep", type=Path, nargs="?", help="folder or name; the newest one otherwise")
    parser.add_argument(
        "--watch", action="store_true", help="print the table again every few seconds until all jobs end"
    )
    parser.add_argument("--every", type=positive, default=WATCH_S, help="seconds between two tables with --watch")
    arguments = parser.parse_args()

    def act() -> None:
        folder = sweep_folder(arguments.sweep)
        if arguments.watch:
            watch(folder, arguments.every, sys.stdout)
        else:
            say(status(folder))

    try:
        sys.exit(guarded(act))
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
