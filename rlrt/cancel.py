"""``python -m rlrt.cancel SWEEP``: stop a sweep's driver and jobs, here or on SLURM; what they saved stays."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path

from rlrt.errors import UserError
from rlrt.lease import held, holder
from rlrt.status import sweep_folder
from rlrt.sweep.state import job_folders
from rlrt.sweep.stop import cancel


def main() -> None:
    """Tell the driver first, so that it starts nothing new, then the jobs."""
    parser = argparse.ArgumentParser(prog="python -m rlrt.cancel", description=main.__doc__)
    parser.add_argument("sweep", type=Path)
    arguments = parser.parse_args()
    try:
        sweep = sweep_folder(arguments.sweep)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if held(sweep / "driver"):
        who = holder(sweep / "driver")
        if who.get("host") == socket.gethostname():
            os.kill(int(who["pid"]), signal.SIGINT)
        else:
            print(f"its driver runs on {who.get('host')} (pid {who.get('pid')}): end it there first")
    told = cancel(job_folders(sweep), print)
    print(f"{told} jobs were told to save and end; the same command as before goes on with the sweep")


if __name__ == "__main__":
    main()
