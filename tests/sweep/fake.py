"""A launcher whose jobs are folders that say so: what a driver costs without what its jobs cost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import rlrt.sweep.driver
from rlrt.records.files import write_json
from rlrt.sweep.plan import Job


class FolderLauncher:
    """Jobs "run" for ``ticks`` looks of the driver, then their folders say finished.

    Args:
        at_once: jobs that may be alive at a time.
        ticks: looks for which a job is alive.
        final: the numbers at a job's end, or what they are for a folder.
    """

    outlives_driver = False

    def __init__(
        self,
        at_once: int,
        ticks: int = 1,
        final: Mapping[str, float] | Callable[[Path], Mapping[str, float]] | None = None,
    ) -> None:
        self.at_once, self.ticks, self.final = at_once, ticks, final or {}
        self._left: dict[Path, int] = {}
        self.started: list[Path] = []

    def room(self, alive: int) -> int:
        return self.at_once - alive

    def limits(self) -> str:
        return "nowhere"

    def settle(self) -> None:
        pass

    def process_states(self) -> dict[Path, str]:
        found = {}
        for folder in list(self._left):
            self._left[folder] -= 1
            if self._left[folder] < 0:
                del self._left[folder]
                final = self.final(folder) if callable(self.final) else self.final
                write_json(folder / "summary.json", {"state": "finished", "step": 1, "final": final})
                found[folder] = ""
            else:
                found[folder] = "RUNNING"
        return found

    def submit(self, folders: Sequence[Path], sweep: Path, name: str) -> dict[Path, str]:
        self.started += folders
        self._left |= dict.fromkeys(folders, self.ticks)
        return {}


def many_jobs(sweep: Path, count: int) -> list[Job]:
    """Jobs whose configs hold no more than a driver reads."""
    plain = {"train": {"steps": 1}, "resume": "auto", "tracking": {"uri": None}}
    return [Job(sweep / f"seed={i}-{i:012x}", (f"seed={i}",), plain, {}, f"{i:012x}") for i in range(count)]


class Killed(BaseException):
    pass


@contextlib.contextmanager
def killed_after(looks: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver is killed in the block, as it waits before its look of this number."""
    left = [looks]

    def sleep(_: float) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(rlrt.sweep.driver.time, "sleep", sleep)
        with pytest.raises(Killed):
            yield
