"""``python -m rlrt.cancel SWEEP``: stop a sweep's driver and jobs, local or on SLURM; their checkpoints and records remain."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path

from rlrt.config.refused import guarded
from rlrt.records.lease import holder, is_held
from rlrt.records.streams import mask_streams
from rlrt.sweep.cancelling import cancel
from rlrt.sweep.state import job_folders, sweep_folder


def main() -> None:
    """Stop a sweep: its driver first, so that no new job starts, then its jobs."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.cancel", description=main.__doc__)
    parser.add_argument("sweep", type=Path)
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: stop(arguments.sweep)))


def stop(path: Path) -> None:
    """Ask the driver of a sweep, then its jobs, to end.

    Raises:
        UserError: if there is no such sweep.
    """
    sweep = sweep_folder(path)
    if is_held(sweep / "driver"):
        who = holder(sweep / "driver")
        if who.get("host") == socket.gethostname():
            os.kill(int(who["pid"]), signal.SIGINT)
        else:
            print(f"its driver runs on {who.get('host')} (pid {who.get('pid')}): end it there first")
    asked = cancel(job_folders(sweep), print)
    print(f"{asked} jobs were told to save and end; the command that started the sweep resumes it")


if __name__ == "__main__":
    main()
