"""Stopping jobs, here by a signal and on SLURM by ``scancel``; what they saved stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rlrt.folder import read_json
from rlrt.sweep.lease import holder
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import LEASE, job_state


def scancel(slurm_id: str) -> None:
    """Cancel a job or an element of an array."""
    subprocess.run(["scancel", slurm_id], capture_output=True, check=False)


def cancel(folders: Sequence[Path], say: Callable[[str], None]) -> int:
    """Ask every living job of a sweep to save and end.

    Returns:
        how many jobs were told.
    """
    told = 0
    for folder in folders:
        spec, state = read_json(folder / SPEC), job_state(folder)
        if spec.get("slurm_id") and not state.done:
            scancel(str(spec["slurm_id"]))
        elif state.name == "running":
            who = holder(folder / LEASE)
            if who.get("host") != socket.gethostname():
                say(f"{folder.name} runs on {who.get('host')}: cancel it there")
                continue
            os.kill(int(who["pid"]), signal.SIGTERM)
        else:
            continue
        told += 1
    return told
