"""``python -m rlrt.cancel SWEEP``: stop a sweep's driver and jobs, local or on SLURM; their checkpoints and records remain."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path

from rlrt.config.refused import guarded
from rlrt.records.claims import moving
from rlrt.records.files import whole
from rlrt.records.lease import holder, is_held, process_of
from rlrt.records.printable import one_line
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import say
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
    driver = sweep / "driver"
    if is_held(driver) or moving([driver]):
        who, pid = holder(driver), process_of(driver)
        host = one_line(who.get("host"), 80)
        if pid is not None:
            os.kill(pid, signal.SIGINT)
        elif who.get("host") == socket.gethostname():
            print("its driver is a process that driver.json does not name: end it first")
        else:
            print(f"its driver runs on {host} (pid {whole(who.get('pid'))}): end it there first")
    asked = cancel(job_folders(sweep), say)
    print(f"{asked} jobs were told to save and end; the command that started the sweep resumes it")


if __name__ == "__main__":
    main()
