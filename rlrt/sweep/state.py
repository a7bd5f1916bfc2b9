"""What state a job is in, read from its folder; and whether it should run again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records.files import mapping, read_json
from rlrt.records.lease import LEASE, held
from rlrt.sweep.plan import SPEC

OUT_OF_MEMORY = "SLURM ended it for using more memory than it asked for; raise hydra.launcher.mem_gb"
TAIL = 65536
"""Bytes at the end of a record that are read for its last lines."""
PERMANENT = ("config", "memory")
"""Kinds of failure that must come again: a bad config, too little memory."""
LATER = ("input", "disk")
"""Kinds of failure that come again until a person has done something (a model that cannot be loaded, a full disk): tried again
when the command comes again, not before."""
DONE = ("finished", "pruned")
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
"""States of ``squeue`` in which a job will run and does not yet."""
ENDED = (
    "", "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
"""States of ``squeue`` in which a job is over; in any other (SIGNALING, STOPPED, ...) it is not, and must not run twice."""


@dataclass(frozen=True)
class JobState:
    """A job as its folder tells it.

    Attributes:
        name: queued, running, finished, failed, interrupted, pruned, or lost (it was running and its process is gone).
        step: updates done.
        retries: times it was started again after a failure or a lost process.
        failure: kind of failure: config, memory, input, disk, error; empty otherwise.
        error: one line.
        final: final numbers.
        alive: whether a process runs it, or SLURM has it (name is then running, or queued while it waits there).
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
        """Whether there is nothing left to do."""
        return self.name in DONE

    def runnable(self, max_retries: int) -> bool:
        """Whether it should be started (again): failures and lost processes up to ``max_retries`` times."""
        if self.alive:
            return False
        if self.name in ("queued", "interrupted"):
            return True
        if self.name in ("failed", "lost"):
            return self.failure not in (*PERMANENT, *LATER) and self.retries < max_retries
        return False


def job_state(folder: Path, says: str | None = None, spec: dict[str, Any] | None = None) -> JobState:
    """The state of a job; ``queued`` where it never started.

    Args:
        folder: the job's folder.
        says: what the place it was submitted to says of it, in ``squeue``'s words; empty where that place no longer knows
            it, None where it was not submitted.
        spec: its ``job.json``, where the caller has it already.
    """
    if says in WAITING:
        return JobState("queued", 0, whole((spec or {}).get("retries")), "", "", {}, alive=True)
    summary, spec = read_json(folder / "summary.json"), read_json(folder / SPEC) if spec is None else spec
    name = str(summary.get("state", "queued"))
    alive = name not in DONE and (says not in (None, *ENDED) or held(folder / LEASE))
    error = str(summary.get("error", "")) if name == "failed" else ""
    failure = str(summary.get("failure", "")) if name == "failed" else ""
    if alive:
        name, error, failure = "running", "", ""
    elif says == "CANCELLED" and name not in DONE:
        name, error, failure = "interrupted", "", ""
    elif name == "running" or (name == "queued" and says is not None):
        name = "lost"
    if name == "lost" and says == "OUT_OF_MEMORY":
        name, failure, error = "failed", "memory", OUT_OF_MEMORY
    for file, values in (("summary.json", summary), (SPEC, spec or {})):
        if not values and (folder / file).exists() and not holds_object(folder / file):
            return JobState(
                "failed", 0, 0, "config", f"{folder / file} cannot be read; remove it to start the job anew", {}
            )
    return JobState(
        name=name,
        step=whole(summary.get("step")),
        retries=whole(spec.get("retries")),
        failure=failure,
        error=error,
        final=final if isinstance(final := summary.get("final"), dict) else {},
        alive=alive,
    )


def holds_object(file: Path) -> bool:
    """Whether a file is a JSON object, an empty one too."""
    try:
        return isinstance(json.loads(file.read_text()), dict)
    except (OSError, ValueError):
        return False


def whole(value: Any) -> int:
    """A whole number that a file holds; 0 for anything else."""
    return value if isinstance(value, int) else 0


def planned_steps(folder: Path) -> int:
    """The updates that a job is to do; 0 where its ``job.json`` cannot tell."""
    return whole(mapping(mapping(read_json(folder / SPEC).get("plain")).get("train")).get("steps"))


def last_records(folder: Path) -> list[dict[str, Any]]:
    """The last whole lines of a job's record, oldest first; reads the end of the file only."""
    file = folder / "metrics.jsonl"
    try:
        with file.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - TAIL))
            lines = handle.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [value for value in map(parsed, lines) if value is not None]


def parsed(line: str) -> dict[str, Any] | None:
    """A line of a record, None for a torn one."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class Follower:
    """Reads a job's record as it grows: each call gives the records that are new since the last one.

    A job that goes on from a checkpoint cuts and rewrites its record; it is then read from the start again.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._offset, self._inode = folder / "metrics.jsonl", 0, 0

    def new(self) -> list[dict[str, Any]]:
        """Records written since the last call, whole lines only."""
        try:
            stat = self._file.stat()
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._inode, self._offset = stat.st_ino, 0
            if stat.st_size == self._offset:
                return []
            with self._file.open("rb") as handle:
                handle.seek(self._offset)
                text = handle.read()
        except OSError:
            return []
        whole_lines = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole_lines)
        lines = whole_lines.decode("utf-8", errors="replace").splitlines()
        return [value for value in map(parsed, lines) if value is not None]


def seconds_left(records: list[dict[str, Any]], steps: int) -> float | None:
    """Seconds that a job still needs by the mean of its last steps; None before it has done one."""
    took = [r["time/step_s"] for r in records if isinstance(r.get("time/step_s"), float)]
    if not took:
        return None
    return max(0, steps - whole(records[-1].get("step"))) * sum(took) / len(took)


def job_folders(sweep: Path) -> list[Path]:
    """Folders of a sweep's jobs, by name; without those that ``resume=never`` put aside."""
    return sorted(p.parent for p in sweep.glob(f"*/{SPEC}") if not re.search(r"\.old-\d+$", p.parent.name))


SWEEPS = Path("outputs/sweeps")


def sweep_folder(given: Path | None) -> Path:
    """The folder asked for, or the sweep that was touched last.

    Raises:
        UserError: if there is none, or it holds no jobs.
    """
    if given is None:
        found = [p for p in SWEEPS.glob("*") if job_folders(p)]
        if not found:
            raise UserError(f"expected a sweep in {SWEEPS}, found none; give its folder.")
        return max(found, key=lambda p: p.stat().st_mtime)
    named = given if given.is_dir() else SWEEPS / given
    if not job_folders(named):
        raise UserError(f"expected the folder of a sweep (with */{SPEC}), found none in {given}.")
    return named
