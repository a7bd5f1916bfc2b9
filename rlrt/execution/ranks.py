"""The other processes of a run: how this one meets them, and what stays in the run's folder when one of them is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlrt.config.schema import Distributed
from rlrt.distributed.rank import is_main
from rlrt.distributed.world import World, connect
from rlrt.errors import RankLost
from rlrt.records.files import is_file, or_logged
from rlrt.records.folder import RunFolder
from rlrt.records.lease import LEASE, LeaseTaken, hold_lease, holder

LIFE = ("pid", "host", "since", "slurm")
"""What a lease's note says of the process that holds it, for as long as it does."""


class LastWords:
    """Stores in a run's summary which rank was lost: on the main rank, or on the first other one, if the main one is gone.

    Args:
        path: the run's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._life: dict[str, Any] = {}

    def begin(self) -> None:
        """Remember which process runs the run, once the main rank has begun."""
        self._life = self._holder()

    def __call__(self, error: str) -> None:
        """Store the sentence, unless the run has not begun, has ended, or is another process's by now.

        The lease of a main rank whose machine lost its power may be held for it by the file server for a while; its note then
        is that of the beginning.
        """
        if not is_file(self._path / "summary.json"):
            return
        if is_main():
            self._write(error, ("running", "failed"))
            return
        try:
            with hold_lease(self._path / LEASE, lag_s=0.0):  # SLURM's KillWait is short
                self._write(error, ("running",))
        except LeaseTaken:
            if self._life and self._holder() == self._life:
                self._write(error, ("running",))

    def _holder(self) -> dict[str, Any]:
        note = holder(self._path / LEASE)
        return {name: note[name] for name in LIFE if name in note}

    def _write(self, error: str, states: tuple[str, ...]) -> None:
        folder = RunFolder(self._path)
        if folder.summary().get("state") in states:
            with or_logged(self._path / "summary.json"):
                folder.set_state("failed", failure="rank", error=error)


def connected(settings: Distributed, on_gpu: bool, stop: Callable[[], bool], words: LastWords) -> World:
    """Meet the run's other processes; arguments and errors as ``connect``."""
    try:
        world = connect(settings.patience_s, on_gpu, settings.meeting_s, settings.interface, stop, words)
    except RankLost as error:
        words(str(error))
        raise
    words.begin()
    return world
