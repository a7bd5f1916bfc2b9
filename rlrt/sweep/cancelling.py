"""Stop jobs: local ones by a signal, SLURM ones by ``scancel``; their checkpoints and records remain."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rlrt.records.files import read_json
from rlrt.records.lease import LEASE, holder, is_held
from rlrt.sweep.launchers import slurm_states
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import ENDED, job_state


def scancel(*slurm_ids: str) -> None:
    """Cancel SLURM jobs or elements of job arrays."""
    if slurm_ids:
        subprocess.run(["scancel", *slurm_ids], capture_output=True, check=False)


def cancel(folders: Sequence[Path], say: Callable[[str], None]) -> int:
    """Ask every active job of a sweep to save and end.

    Returns:
        number of jobs asked.
    """
    ids = {f: str(i) for f in folders if (i := read_json(f / SPEC).get("slurm_id")) and not job_state(f).done}
    states = slurm_states(list(ids.values()))
    active = [i for i in ids.values() if states is None or states[i] not in ENDED]
    scancel(*active)
    asked = len(active)
    for folder in folders:
        if folder not in ids and job_state(folder).name == "running":
            asked += terminate(folder, say)
    return asked


def terminate(folder: Path, say: Callable[[str], None]) -> bool:
    """Ask the process that holds a job's lease to save and end; return True if this machine has such a process.

    Repeating this is harmless, also while the process starts: it installs its signal handler first.
    """
    if not is_held(folder / LEASE):
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
