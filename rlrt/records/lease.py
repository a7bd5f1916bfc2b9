"""Who runs a run or drives a sweep now: a lock that dies with its holder, and a note that says who it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rlrt.errors import UserError
from rlrt.records.files import read_json, write_json

LEASE = "lease"
"""In a run's folder: who runs it."""
PATIENCE_S = 1.0
"""Seconds for which a lock that is taken is tried again: whoever only looks whether it is taken holds it for a moment."""


class Held(Exception):
    """Somebody else holds the lock; ``who`` is the note it left."""

    def __init__(self, who: dict[str, Any]) -> None:
        super().__init__(str(who))
        self.who = who


def _try(path: Path) -> IO[str] | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold ``path.lock`` while the block runs, with a note of who holds it in ``path.json``.

    The kernel lets go of the lock when the process ends, however it ends; process ids are never trusted alone.

    Raises:
        Held: if another process has it.
    """
    lock, note = path.with_suffix(".lock"), path.with_suffix(".json")
    end = time.monotonic() + PATIENCE_S
    while (handle := _try(lock)) is None:
        if time.monotonic() > end:
            raise Held(read_json(note))
        time.sleep(0.05)
    try:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "slurm": slurm_job()}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its note
            write_json(note, who)
        yield
    finally:
        handle.close()


def slurm_job() -> str | None:
    """This process's own SLURM job: an element of an array by its own name, since the raw id of one is the whole array's."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def held(path: Path) -> bool:
    """Whether a process of this machine (or of the cluster, where its file system shares locks) holds the lock."""
    try:
        with path.with_suffix(".lock").open("rb") as handle:  # to read: whoever looks may have no right to write
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def holder(path: Path) -> dict[str, Any]:
    """The note of the last holder: pid, host, since, slurm."""
    return read_json(path.with_suffix(".json"))


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Hold the lease of a run's folder.

    Raises:
        UserError: if another process runs it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with hold(path / LEASE):
            yield
    except Held as held:
        raise UserError(
            f"hydra.run.dir: {path} is being run by process {held.who.get('pid')} on {held.who.get('host')}; wait for it, or "
            "give another folder as hydra.run.dir=FOLDER."
        ) from None
