"""What a driver awaits before it takes a job for lost: its host may see files late, and the job may run elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlrt.records import claims
from rlrt.records.lease import LEASE
from rlrt.sweep.state import JobState

LATE_S = 60.0
"""Seconds for which a job is awaited that SLURM says completed, while its folder says that it runs."""


class Patience:
    """Waits before jobs count as lost.

    Only a process that ended by itself is COMPLETED for SLURM: it has written how it ended, which can be seen late, or found
    that another process runs the job. Where neither SLURM nor this machine knows a job's process, its claim says whether it
    lives.

    Args:
        clock: seconds; tests replace it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Path, float] = {}
        self._beats: dict[Path, object] = {}
        self._completed: set[Path] = set()

    def awaited(self, folder: Path, state: JobState, external: str | None) -> JobState:
        """Return the state of a job, running while it is awaited.

        Args:
            state: as its folder has it.
            external: as SLURM or this machine's processes have it, None for a job that neither knows.
        """
        if state.name != "lost":
            self._forget(folder)
            return state
        with contextlib.suppress(OSError):
            os.listdir(folder)  # looked at anew, so that a file that was exchanged is found
        note = claims.note_of(folder / LEASE)
        patience = self._seconds(folder, external, note)
        now, beat = self._clock(), (note.get("nonce"), note.get("beat"))
        if beat != self._beats.get(folder, beat):
            self._since[folder] = now
        self._beats[folder] = beat
        if now - self._since.setdefault(folder, now) < patience:
            return dataclasses.replace(state, name="running", error="", alive=True)
        self._forget(folder)
        return state

    def _seconds(self, folder: Path, external: str | None, note: Mapping[str, Any]) -> float:
        if external == "COMPLETED":
            self._completed.add(folder)
        if folder in self._completed:  # SLURM forgets soon
            return LATE_S
        unknown = not external and bool(note) and not claims.is_gone(note)
        return claims.BEATS * claims.BEAT_S + claims.LAG_S if unknown else 0.0

    def _forget(self, folder: Path) -> None:
        self._completed.discard(folder)
        self._since.pop(folder, None)
        self._beats.pop(folder, None)
