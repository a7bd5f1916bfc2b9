"""Runs that wait for a test: whoever disturbs a run while it runs must not depend on how quick the machine is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.engines.hf import HfEngine
from rlrt.execution.stop import StopFlag
from rlrt.keys import key

PATIENCE_S = 1200.0


@dataclass
class HeldEngine(HfEngine):
    """The sampler that a file holds up: a process takes weights ``free`` times, and the next time waits for the file to go.

    It leaves a mark where it waits, and a signal to save lets it go too.
    """

    hold: str = key(
        "a folder: while the file 'closed' is in it, a process waits where it has taken weights often enough"
    )
    free: int = key("times that a process takes weights without a look at the file", least=0)
    _taken: int = field(default=0, init=False, repr=False)

    def load(self, model: Any, stop_ids: Sequence[int], version: int = 0) -> None:
        self._taken += 1
        if self._taken > self.free:
            wait_while(Path(self.hold) / "closed")
        super().load(model, stop_ids, version)


def wait_while(closed: Path) -> None:
    """Wait until a file is gone or this process is told to stop; a file with its pid says that it waits."""
    end, mark = time.monotonic() + PATIENCE_S, closed.parent / f"{os.getpid()}.waits"
    while closed.exists() and not told_to_stop():
        if not mark.exists():
            mark.touch()
        time.sleep(0.05)
        if time.monotonic() > end:
            raise TimeoutError(f"{closed}: nobody let this run go on")


def told_to_stop() -> bool:
    """Whether this process has had a signal to save."""
    flag = getattr(signal.getsignal(signal.SIGUSR2), "__self__", None)
    return isinstance(flag, StopFlag) and flag.requested()


class Hold:
    """Holds the runs that are given its ``keys`` in the middle of a step, until ``release``.

    Args:
        folder: a folder of its own, which is made.
        steps: how many steps each process does before it waits in the next.
        evaluations: evaluations up to there (one before the first step; each takes weights twice, a step once).
    """

    def __init__(self, folder: Path, steps: int, evaluations: int = 1) -> None:
        self.folder = folder
        free = steps + 2 * evaluations
        held = ("engine._target_=tests.held.HeldEngine", f"+engine.hold='{folder}'", f"+engine.free={free}")
        self.keys = (*held, "teacher.probe_prompts=0")  # a probe of the teacher takes weights too
        folder.mkdir()
        (folder / "closed").touch()

    def waiting(self) -> list[int]:
        """Pids of the processes that have come to wait, the first one first."""
        marks = sorted(self.folder.glob("*.waits"), key=lambda p: p.stat().st_mtime_ns)
        return [int(mark.stem) for mark in marks]

    def release(self) -> None:
        """Let all go on, now and from now on."""
        (self.folder / "closed").unlink(missing_ok=True)
