"""Ending early without losing anything."""

from __future__ import annotations

import signal
from typing import Any


class StopFlag:
    """Turns SIGINT, SIGTERM and SIGUSR2 into a request to save at the next step boundary.

    A Ctrl-C after that acts at once: a person is in a hurry. SLURM's second signal, at the limit itself, is no reason to tear
    a checkpoint that is being written.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """True once a signal came."""
        return self.signal is not None

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
        print(f"\n{signal.Signals(number).name}: saving at the end of this step; Ctrl-C then stops at once", flush=True)
