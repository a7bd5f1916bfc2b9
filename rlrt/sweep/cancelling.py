"""Stopping jobs, here by a signal and on SLURM by ``scancel``; what they saved stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rlrt.records.files import read_json
from rlrt.records.lease import LEASE, held, holder
from rlrt.sweep.launchers import slurm_states
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import ENDED, job_state


def scancel(*slurm_ids: str) -> None:
    """Cancel jobs or elements of arrays."""
    if slurm_ids:
        subprocess.run(["scancel", *slurm_ids], capture_output=True, check=False)


def cancel(folders: Sequence[Path], say: Callable[[str], None]) -> int:
    """Ask every living job of a sweep to save and end.

    Returns:
        how many jobs were told.
    """
    ids = {f: str(i) for f in folders if (i := read_json(f / SPEC).get("slurm_id")) and not job_state(f).done}
    says = slurm_states(list(ids.values()))
    there = [i for i in ids.values() if says is None or says[i] not in ENDED]
    scancel(*there)
    told = len(there)
    for folder in folders:
        if folder not in ids and job_state(folder).name == "running":
            told += terminate(folder, say)
    return told


def terminate(folder: Path, say: Callable[[str], None]) -> bool:
    """Tell the process that holds a job's lease to save and end; returns whether there is one here.

    Harmless when repeated, and when the process has only just begun: its first act is to listen.
    """
    if not held(folder / LEASE):
        return False
    who = holder(folder / LEASE)
    if who.get("host") != socket.gethostname():
        say(f"{folder.name} runs on {who.get('host')}: cancel it there")
        return False
    try:
        os.kill(int(who["pid"]), signal.SIGTERM)
    except (KeyError, ValueError, ProcessLookupError):
        return False
    return True
