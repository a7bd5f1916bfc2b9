"""What state a job is in, read from its folder; and whether it should run again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.folder import read_json
from rlrt.sweep.lease import held
from rlrt.sweep.plan import SPEC

LEASE = "lease"
PERMANENT = ("config", "memory")
"""Kinds of failure that must come again: a bad config, too little memory."""
DONE = ("finished", "pruned")


@dataclass(frozen=True)
class JobState:
    """A job as its folder tells it.

    Attributes:
        name: queued, running, finished, failed, interrupted, pruned, or lost (it was running and its process is gone).
        step: updates done.
        retries: times it was started again after a failure or a lost process.
        failure: kind of failure: config, memory, error; empty otherwise.
        error: one line.
        final: final numbers.
    """

    name: str
    step: int
    retries: int
    failure: str
    error: str
    final: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.name in DONE

    def runnable(self, max_retries: int) -> bool:
        """Whether it should be started (again): failures and lost processes up to ``max_retries`` times."""
        if self.name in ("queued", "interrupted"):
            return True
        if self.name in ("failed", "lost"):
            return self.failure not in PERMANENT and self.retries < max_retries
        return False


def job_state(folder: Path) -> JobState:
    """The state of a job's folder; ``queued`` where it never started."""
    summary, spec = read_json(folder / "summary.json"), read_json(folder / SPEC)
    name = str(summary.get("state", "queued"))
    alive = name not in DONE and held(folder / LEASE)
    if alive:
        name = "running"
    elif name == "running":
        name = "lost"
    for file, values in (("summary.json", summary), (SPEC, spec)):
        if not values and (folder / file).exists() and not holds_object(folder / file):
            return JobState(
                "failed", 0, 0, "config", f"{folder / file} cannot be read; remove it to start the job anew", {}
            )
    return JobState(
        name=name,
        step=whole(summary.get("step")),
        retries=whole(spec.get("retries")),
        failure=str(summary.get("failure", "")) if name == "failed" else "",
        error=str(summary.get("error", "")) if name == "failed" else "",
        final=final if isinstance(final := summary.get("final"), dict) else {},
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
    train = read_json(folder / SPEC).get("plain", {}).get("train", {})
    return whole(train.get("steps"))


def last_record(folder: Path) -> dict[str, Any]:
    """The last whole line of a job's record, {} where there is none; reads the end of the file only."""
    file = folder / "metrics.jsonl"
    try:
        with file.open("rb") as handle:
            handle.seek(0, 2)
            size = handle.tell()
            handle.seek(max(0, size - 65536))
            lines = handle.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}


def job_folders(sweep: Path) -> list[Path]:
    """Folders of a sweep's jobs, by name."""
    return sorted(p.parent for p in sweep.glob(f"*/{SPEC}"))
