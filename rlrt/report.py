"""``python -m rlrt.report SWEEP``: report a sweep, finished or not, as tables, figures and a page, also in MLflow."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from rlrt.config.refused import guarded
from rlrt.records.printable import one_line
from rlrt.records.secrets import to_terminal
from rlrt.records.streams import mask_streams
from rlrt.reporting.page import Live, read, write
from rlrt.reporting.tables import in_terminal
from rlrt.reporting.terminal import count, positive, say
from rlrt.sweep.parent import send_report
from rlrt.sweep.standing import driver_of, rows_of, states_of
from rlrt.sweep.state import job_folders
from rlrt.sweep.table import counted, table

LIVE_WIDTH = 120
"""Columns of the jobs' table on the live page."""


def main() -> None:
    """Print the tables, and write report.html, report.md and report/ into the sweep's folder."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.report", description=main.__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--baseline", help="label that the others are compared with, seed by seed (default: grpo)")
    parser.add_argument(
        "--smooth",
        type=count,
        metavar="N",
        help="values that a point of a smoothed learning curve is the mean of (default: a twentieth of the run; 1: none)",
    )
    parser.add_argument("--watch", action="store_true", help="write the page again and again while the sweep runs")
    parser.add_argument("--every", type=positive, default=10.0, help="seconds between two pages with --watch")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])

    def act() -> None:
        if arguments.watch:
            watch(arguments.sweep, arguments.baseline, arguments.smooth, arguments.every)
        report = read(arguments.sweep, arguments.baseline)
        files = write(report, arguments.smooth)
        say(f"{report.markdown(in_terminal)}\npage: {one_line(files[0])}")
        send_report(arguments.sweep, files)

    try:
        sys.exit(guarded(act))
    except KeyboardInterrupt:
        print()


def watch(sweep: Path, baseline: str | None, window: int | None, every: float) -> None:
    """Write the live page until no driver and no job of the sweep is active; it says once where the page is.

    A page that takes long to write is written less often: at most a fifth of the time goes into it.
    """
    told = False
    while True:
        states, _ = states_of(job_folders(sweep))
        if not driver_of(sweep) and not any(state.alive for state, _ in states.values()):
            return
        begin, rows = time.monotonic(), rows_of(states)
        live = Live(every, f"{table(rows, LIVE_WIDTH)}\n{counted(rows)}, {time.strftime('%H:%M:%S')}")
        (page, *_) = write(read(sweep, baseline), window, live)
        if not told:
            told = True
            say(f"live until the sweep ends: {one_line(page.resolve().as_uri())}")
        time.sleep(max(every, 4 * (time.monotonic() - begin)))


if __name__ == "__main__":
    main()
