"""Leases: which process runs a run or drives a sweep.

A lock that ends with its process, and a note that names the process. Where machines do not share locks, a claim with a beat
(``records.claims``) tells them apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rlrt.errors import UserError
from rlrt.records.claims import Moves, claimed
from rlrt.records.files import Unreadable, opened, read_json
from rlrt.records.printable import one_line

LEASE = "lease"
"""Name of the lease in a run's folder."""
PATIENCE_S = 1.0
"""Seconds for which a taken lock is retried: a process that only checks the lock also holds it for a moment."""


class LeaseTaken(Exception):
    """Another process holds the lease; ``holder`` is its note (pid, host, since, slurm)."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__(str(holder))
        self.holder = holder


def _try(path: Path) -> IO[str] | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.fdopen(os.open(path, flags, 0o666), "a")
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise UserError(f"{path} is no file, and it must be one to be locked; remove it.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle


@contextlib.contextmanager
def hold_lease(path: Path, lag_s: float | None = None) -> Iterator[None]:
    """Hold ``path.lock`` and a claim while the block runs, with a note about this process in ``path.json``.

    The kernel releases the lock when the process ends, however it ends; process ids alone are never trusted. Of a process that
    was killed the claim stays: if it was on this machine, it is seen to be gone at once, and else after half a minute.

    Args:
        path: such as ``FOLDER/lease``.
        lag_s: seconds by which the last holder's signs of life may be seen late; 0 for a caller that knows that it is gone.

    Raises:
        LeaseTaken: if another process holds it.
    """
    lock = path.with_suffix(".lock")
    end = time.monotonic() + PATIENCE_S
    while (handle := _try(lock)) is None:
        if time.monotonic() > end:
            raise LeaseTaken(holder(path))
        time.sleep(0.05)
    try:
        with contextlib.ExitStack() as stack:
            note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "slurm": slurm_job()}
            try:
                stack.enter_context(claimed(path, note, lag_s))
            except Moves as moves:
                warn_unshared(path, moves.note)
                raise LeaseTaken(moves.note) from None
            yield
    finally:
        handle.close()


UNSHARED: set[Path] = set()
"""Folders of which this process has said that locks are not shared there."""


def warn_unshared(path: Path, note: Mapping[str, Any]) -> None:
    """Warn once that another process lives that holds a lease although the lease's lock is free."""
    if path not in UNSHARED:
        UNSHARED.add(path)
        who = f"process {one_line(note.get('pid'), 20)} on {one_line(note.get('host'), 80)}"
        print(
            f"WARNING: file locks do not hold in {path.parent}: {who} works there, and its lock is free; a file system of "
            "several machines must share locks (NFS without local_lock and nolock, Lustre with flock), see docs/sweeps.md",
            file=sys.stderr,
            flush=True,
        )


def slurm_job() -> str | None:
    """Return the id of this process's SLURM job; an array element as ARRAY_TASK, since its raw id may name the whole array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def is_held(path: Path) -> bool:
    """True if a process of this machine (or of the cluster, if its file system shares locks) holds the lease."""
    try:
        with opened(path.with_suffix(".lock")) as handle:  # read only: the caller may not be allowed to write
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, Unreadable):
        return False
    except BlockingIOError:
        return True
    return False


def holder(path: Path) -> dict[str, Any]:
    """Return the note of the last holder: pid, host, since, slurm."""
    return read_json(path.with_suffix(".json"))


def process_of(path: Path) -> int | None:
    """Return the process of this machine that holds a lease; None if its note names another machine, or a process that has not
    opened the lock: what lies in a folder does not decide which process gets a signal."""
    note = holder(path)
    pid = note.get("pid")
    if note.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 1:
        return None
    try:
        lock = path.with_suffix(".lock").stat()
        handles = list(os.scandir(f"/proc/{pid}/fd")) if Path("/proc/self/fd").is_dir() else None
    except OSError:  # no such process, or somebody else's
        return None
    return pid if handles is None or any(is_same(handle, lock) for handle in handles) else None


def is_same(handle: os.DirEntry[str], file: os.stat_result) -> bool:
    """True if an open file of a process is a certain file."""
    try:
        return os.path.samestat(os.stat(handle.path), file)
    except OSError:  # closed in between
        return False


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Hold the lease of a run's folder.

    Raises:
        UserError: if another process runs the run.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with hold_lease(path / LEASE):
            yield
    except LeaseTaken as taken:
        other = taken.holder
        raise UserError(
            f"hydra.run.dir: {path} is being run by process {other.get('pid')} on {other.get('host')}; wait for it, or "
            "give another folder as hydra.run.dir=FOLDER."
        ) from None
