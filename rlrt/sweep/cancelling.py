"""Stop jobs: local ones by a signal, SLURM ones by ``scancel``; their checkpoints and records remain."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rlrt.records.claims import moving
from rlrt.records.files import read_json
from rlrt.records.lease import LEASE, holder, is_held, process_of
from rlrt.records.printable import one_line
from rlrt.sweep.launchers import slurm_states
from rlrt.sweep.names import Submitted, slurm_id, submitted
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import ENDED, job_state


def scancel(jobs: Sequence[Submitted]) -> None:
    """Cancel SLURM jobs or elements of job arrays.

    SLURM cancels only those that have the name under which rlrt submitted them: a job's folder cannot have another job of the
    user cancelled.
    """
    for name in dict.fromkeys(name for _, name in jobs):
        these = [number for number, other in jobs if other == name]
        subprocess.run(["scancel", f"--name={name}", *these], capture_output=True, check=False)


def cancel(folders: Sequence[Path], say: Callable[[str], None]) -> int:
    """Ask every active job of a sweep to save and end.

    Returns:
        number of jobs asked.
    """
    specs = {f: read_json(f / SPEC) for f in folders}
    ids = {f: i for f, spec in specs.items() if (i := slurm_id(spec)) and not job_state(f, None, spec).done}
    jobs = {f: job for f in ids if (job := submitted(specs[f])) is not None}
    states = slurm_states(list(jobs.values()))
    for number in [number for f, number in ids.items() if f not in jobs]:
        say(f"job {number} on SLURM is not cancelled: its job.json lacks the name under which it was submitted")
    active = [job for job in jobs.values() if states is None or states[job] not in ENDED]
    scancel(active)
    asked = len(active)
    local = [folder for folder in folders if folder not in ids]
    names = {f: job_state(f).name for f in local}
    unshared = moving(f / LEASE for f, name in names.items() if name == "lost")
    for folder in local:
        if folder / LEASE in unshared:
            asked += ask_to_end(folder, say)
        elif names[folder] == "running":
            asked += terminate(folder, say)
    return asked


def terminate(folder: Path, say: Callable[[str], None]) -> bool:
    """Ask the process that holds a job's lease to save and end; return True if this machine has such a process.

    Repeating this is harmless, also while the process starts: it installs its signal handler first.
    """
    return is_held(folder / LEASE) and ask_to_end(folder, say)


def ask_to_end(folder: Path, say: Callable[[str], None]) -> bool:
    """Send SIGTERM to the process that a job's lease names; return True if it was one of this machine."""
    who = holder(folder / LEASE)
    if who.get("host") != socket.gethostname():
        say(f"{one_line(folder.name)} runs on {one_line(who.get('host'), 80)}: cancel it there")
        return False
    pid = process_of(folder / LEASE)
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True
