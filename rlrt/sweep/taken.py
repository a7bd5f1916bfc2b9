"""What a driver does about a folder that is taken away while its sweep runs: the other jobs go on, and one sentence says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import DiskFull, FolderLost
from rlrt.records.claims import refuse_replaced
from rlrt.records.files import write_json
from rlrt.records.storage import denied, loss, removed, writable
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import DONE, JobState


def lost_job(error: BaseException, folder: Path, state: JobState | None = None) -> JobState | None:
    """Return the state of a job whose folder takes nothing more; None for an error of another kind.

    Args:
        error: what came of writing there.
        folder: the job's.
        state: its last state.
    """
    lost = error if isinstance(error, FolderLost) else loss(error, folder)
    return None if lost is None else as_state(lost, state)


def as_state(lost: FolderLost, state: JobState | None = None) -> JobState:
    """Return the state of a job that a lost folder ended; the same command starts it again."""
    kind = "disk" if isinstance(lost, DiskFull) else "folder"
    return JobState("failed", state.step if state else 0, state.retries if state else 0, kind, str(lost), {})


def seen(folder: Path, state: JobState) -> JobState:
    """Return the state of a job, whose folder says nothing about it where the folder was taken away."""
    if state.alive or state.name in DONE or state.failure:
        return state
    if not (folder / SPEC).is_file():
        return as_state(removed(folder), state)
    return state if writable(folder) else as_state(denied(folder, "Permission denied"), state)


def write_spec(folder: Path, spec: Mapping[str, Any]) -> FolderLost | None:
    """Write a job's ``job.json``; return what hinders it. A folder that was removed is not made anew."""
    if not folder.is_dir():
        return removed(folder)
    try:
        write_json(folder / SPEC, spec, private=True)
    except OSError as error:
        lost = loss(error, folder)
        if lost is None:
            raise
        return lost
    return None


def check_sweep(sweep: Path) -> None:
    """Refuse to go on with a sweep that another driver took over, or whose folder was removed, even if a job has made a part of
    it anew.

    Raises:
        Replaced: naming the other driver.
        FolderLost: saying that the folder was removed.
    """
    refuse_replaced(sweep / "driver")
    if not (sweep / "driver.lock").is_file():
        raise FolderLost(
            f"hydra.sweep.dir: {sweep} was removed while its jobs ran; they end at their next step, and the same command "
            "starts them anew."
        )
