"""Ending early without losing anything."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

GRACE = "RLRT_GRACE_S"
"""Environment variable: seconds between SLURM's signal to save and the time limit; the launcher sets it."""
UNTOLD_S = 30.0
"""Seconds that a process is taken to have after a signal where nobody says: SLURM's and Kubernetes' usual delay."""
FIRST_SAVE_S = 10.0
"""Seconds that a checkpoint is taken to need before one has been written."""
MARGIN_S = 5.0
"""Seconds that the end of a process takes besides."""


class StopFlag:
    """Turns SIGINT, SIGTERM and SIGUSR2 into a request to save and end: at the next step boundary, or before it where that
    would come too late (``Pace``).

    A Ctrl-C after that acts at once: a person is in a hurry. SLURM's second signal, at the limit itself, is no reason to tear
    a checkpoint that is being written.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._end = math.inf
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """True once a signal came."""
        return self.signal is not None

    def time_left(self) -> float:
        """Seconds until this process must have ended; infinite until a signal came."""
        return self._end - time.monotonic()

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        grace = float(os.environ.get(GRACE, UNTOLD_S)) if number == signal.SIGUSR2 else UNTOLD_S
        self._end = time.monotonic() + grace
        words = f"saving within {grace:.0f} s, at the end of this step if that is sooner"
        print(f"\n{signal.Signals(number).name}: {words}; Ctrl-C then stops at once", flush=True)


class Pace:
    """Knows how long steps and checkpoints take, and so whether the end of the current step would come too late.

    Args:
        time_left: seconds until the process must have ended.
        clock: seconds; tests replace it.
    """

    def __init__(self, time_left: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._time_left, self._clock = time_left, clock
        self._begin, self._step_s, self._save_s = clock(), 0.0, FIRST_SAVE_S
        self._writing_since: float | None = None

    def boundary(self) -> None:
        """Note that a step ended."""
        now = self._clock()
        self._begin, self._step_s = now, now - self._begin

    def resume(self) -> None:
        """Note that the next step begins now, after the loop stood still for a checkpoint."""
        self._begin = self._clock()

    def writing(self) -> None:
        """Note that a checkpoint is written from now on, beside the next steps."""
        self._writing_since = self._clock()

    def saved(self, seconds: float) -> None:
        """Note that a checkpoint is complete, and how long it took."""
        self._save_s, self._writing_since = seconds, None

    def too_late(self) -> bool:
        """True if the end of this step, as long as the last one, and a checkpoint would come too late.

        A checkpoint that is still being written is complete before the next one begins.
        """
        left = self._time_left()
        if left == math.inf:
            return False
        now = self._clock()
        rest = max(0.0, self._step_s - (now - self._begin))
        if self._writing_since is not None:
            rest = max(rest, self._save_s - (now - self._writing_since))
        return left < rest + self._save_s + MARGIN_S
