"""The state of a job, read from its folder, and whether the job should run again."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records.files import (
    Unreadable,
    closed_folders,
    folders_with,
    mapping,
    opened,
    read_json,
    whole,
    why_unreadable,
)
from rlrt.records.jsonlines import LONGEST, NOT_FINITE, JsonLines, is_number, numbers_of, objects_of
from rlrt.records.killed import KILLED, why_gone
from rlrt.records.lease import LEASE, is_held
from rlrt.records.printable import one_line
from rlrt.sweep.plan import SPEC
from rlrt.sweep.said import lost_task

OUT_OF_MEMORY = "SLURM ended it for using more memory than it asked for; raise hydra.launcher.mem_gb"
LONGEST_STATE = 40
"""Characters of the name of a state or of a kind of failure."""
LONGEST_S = 1e8
"""Seconds that a job can be said to need: three years."""
TAIL = 65536
"""Bytes that are read from the end of a record to get its last lines."""
PERMANENT = ("config", "memory")
"""Kinds of failure that a retry would repeat: a bad config, too little memory."""
LATER = ("input", "disk", "folder", "limit")
"""Kinds of failure that repeat until the user acts (a model that cannot be loaded, a full disk, a folder that was taken away,
a time limit under which no checkpoint can be written): the job is retried when the user gives the command again, not before."""
DONE = ("finished", "pruned")
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
"""States of ``squeue`` in which a job waits to run."""
ENDED = (
    "", "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
"""States of ``squeue`` in which a job has ended; in any other (SIGNALING, STOPPED, ...) it must not be started again."""


@dataclass(frozen=True)
class JobState:
    """The state of a job.

    Attributes:
        name: queued, running, finished, failed, interrupted, pruned, or lost (it was running and its process is gone).
        step: number of updates done.
        retries: times that it was started again after a failure or a lost process.
        failure: kind of failure: config, memory, input, disk, folder, limit, error; empty otherwise.
        error: one line.
        final: final metrics; one that is no number is a text of ``NOT_FINITE``.
        alive: True if a process runs it or SLURM has it (its name is then running, or queued while SLURM lets it wait).
    """

    name: str
    step: int
    retries: int
    failure: str
    error: str
    final: dict[str, Any]
    alive: bool = False

    @property
    def done(self) -> bool:
        """True if the job needs no further run."""
        return self.name in DONE

    def runnable(self, max_retries: int) -> bool:
        """True if the job should be started; failed and lost jobs are started again up to ``max_retries`` times."""
        if self.alive:
            return False
        if self.name in ("queued", "interrupted"):
            return True
        if self.name in ("failed", "lost"):
            return self.failure not in (*PERMANENT, *LATER) and self.retries < max_retries
        return False


def job_state(folder: Path, external: str | None = None, spec: dict[str, Any] | None = None) -> JobState:
    """Return the state of a job; ``queued`` if it never started.

    Args:
        folder: the job's folder.
        external: the job's state by SLURM or its local process, in ``squeue``'s terms; "" for a job no longer known to them,
            None for one that was not submitted.
        spec: content of its ``job.json``, if the caller has read it already.
    """
    if external in WAITING:
        return JobState("queued", 0, whole((spec or {}).get("retries")), "", "", {}, alive=True)
    summary, spec = read_json(folder / "summary.json"), read_json(folder / SPEC) if spec is None else spec
    name = one_line(summary.get("state", "queued"), LONGEST_STATE)
    alive = name not in DONE and (external not in (None, *ENDED) or is_held(folder / LEASE))
    error = one_line(summary.get("error", "")) if name == "failed" else ""
    failure = one_line(summary.get("failure", ""), LONGEST_STATE) if name == "failed" else ""
    if alive:
        name, error, failure = "running", "", ""
    elif external == "CANCELLED" and name not in DONE:
        name, error, failure = "interrupted", "", ""
    elif name == "running" or (name == "queued" and external is not None):
        name = "lost"
        reason = why_gone(summary)
        error = lost_task(folder, spec) if reason == KILLED else reason
    if name == "lost" and external == "OUT_OF_MEMORY":
        name, failure, error = "failed", "memory", OUT_OF_MEMORY
    for file, values in (("summary.json", summary), (SPEC, spec or {})):
        if not values and (reason := why_unreadable(folder / file)):
            error = f"{one_line(reason).removesuffix('.')}; remove it to start the job anew"
            return JobState("failed", 0, 0, "config", error, {})
    return JobState(
        name=name,
        step=whole(summary.get("step")),
        retries=whole(spec.get("retries")),
        failure=failure,
        error=error,
        final={k: v for k, v in mapping(summary.get("final")).items() if is_number(v) or v in NOT_FINITE},
        alive=alive,
    )


def why(folder: Path, state: JobState, sweep: Path, max_retries: int) -> str:
    """Say why a job that did not finish will not be started again, and what the user can do."""
    if state.name == "interrupted":
        return "it was cancelled; the same command resumes it"
    reason = state.error or f"its process ended without an error message, see {sweep / 'submitit'}"
    reason = reason.rstrip(".")
    if state.failure == "folder":
        return reason
    if state.failure in LATER:
        return f"{reason}; the same command tries it again; log: {folder / 'log.txt'}"
    tried = f" (tried {state.retries + 1} times; a larger hydra.sweeper.max_retries tries again)"
    return f"{reason}; log: {folder / 'log.txt'}{tried if state.retries >= max_retries else ''}"


def planned_steps(folder: Path) -> int:
    """Return the number of updates that a job is to do, by its ``job.json``; 0 if that is unknown."""
    return whole(mapping(mapping(read_json(folder / SPEC).get("plain")).get("train")).get("steps"))


def last_records(folder: Path) -> list[dict[str, Any]]:
    """Return the numbers of the last complete lines of a job's record, oldest first; only the end of the file is read."""
    try:
        return [numbers_of(record) for record in JsonLines(folder / "metrics.jsonl").last(TAIL)]
    except Unreadable:
        return []


class Follower:
    """Reads a job's record while it grows: each call returns the records added since the last call.

    A job that resumes from a checkpoint cuts and rewrites its record; the record is then read from the start again.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._offset, self._inode = folder / "metrics.jsonl", 0, 0

    def new(self) -> list[dict[str, Any]]:
        """Return the records written since the last call, complete lines only."""
        try:
            stat = self._file.stat()
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._inode, self._offset = stat.st_ino, 0
            if stat.st_size == self._offset:
                return []
            with opened(self._file) as handle:
                handle.seek(self._offset)
                text = handle.read(LONGEST)
        except (OSError, Unreadable):
            return []
        whole_lines = text[: text.rfind(b"\n") + 1]
        self._offset += len(text) if len(text) == LONGEST and not whole_lines else len(whole_lines)
        return [numbers_of(record) for record in objects_of(whole_lines.split(b"\n"))]


def pace(records: list[dict[str, Any]]) -> float | None:
    """Return the mean seconds of a job's last steps, evaluations included; None before its first step."""
    took = [min(r["time/step_s"], LONGEST_S) for r in records if r.get("time/step_s", -1) >= 0]
    return sum(took) / len(took) if took else None


def seconds_left(records: list[dict[str, Any]], steps: int) -> float | None:
    """Estimate the seconds that a job still needs from the mean time of its last steps; None before its first step."""
    each = pace(records)
    return None if each is None else min(max(0, steps - whole(records[-1].get("step"))) * each, LONGEST_S)


def job_folders(sweep: Path) -> list[Path]:
    """List the folders of a sweep's jobs by name, without earlier runs that ``resume=never`` moved away; a folder that may not
    be entered counts as one."""
    found = {*folders_with(sweep, SPEC), *closed_folders(sweep)}
    return sorted(p for p in found if not re.search(r"\.old-\d+$", p.name))


SWEEPS = Path("outputs/sweeps")
"""Default parent folder of sweeps."""


def sweeps_here() -> list[Path]:
    """Return the folders of all sweeps, the one that was modified last first.

    Raises:
        UserError: if there is none.
    """
    sweeps = [p for p in SWEEPS.glob("*") if job_folders(p)]
    if not sweeps:
        raise UserError(f"expected a sweep in {SWEEPS}, found none; give its folder.")
    return sorted(sweeps, key=lambda p: p.stat().st_mtime, reverse=True)


def sweep_folder(path: Path | None) -> Path:
    """Return the folder of a sweep given by path or name; None means the sweep that was modified last.

    Raises:
        UserError: if there is no such sweep, or it has no jobs.
    """
    if path is None:
        return sweeps_here()[0]
    folder = path if os.path.isdir(path) else SWEEPS / path
    if not job_folders(folder):
        raise UserError(f"expected the folder of a sweep (with */{SPEC}), found none in {path}.")
    return folder
