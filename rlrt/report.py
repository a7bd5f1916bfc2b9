"""``python -m rlrt.report SWEEP``: report a sweep, finished or not, as tables, figures and a page, also in MLflow."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from rlrt.config.refused import guarded
from rlrt.records.printable import one_line
from rlrt.records.secrets import to_terminal
from rlrt.records.streams import mask_streams
from rlrt.reporting.page import read, write
from rlrt.reporting.tables import in_terminal
from rlrt.reporting.terminal import say, whole_from_one
from rlrt.sweep.parent import send_report


def main() -> None:
    """Print the tables, and write report.html, report.md and report/ into the sweep's folder."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.report", description=main.__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--baseline", help="label that the others are compared with, seed by seed (default: grpo)")
    parser.add_argument(
        "--smooth",
        type=whole_from_one,
        metavar="N",
        help="values that a point of a smoothed learning curve is the mean of (default: a twentieth of the run; 1: none)",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])

    def act() -> None:
        report = read(arguments.sweep, arguments.baseline)
        files = write(report, arguments.smooth)
        say(f"{report.markdown(in_terminal)}\npage: {one_line(files[0])}")
        send_report(arguments.sweep, files)

    sys.exit(guarded(act))


if __name__ == "__main__":
    main()
