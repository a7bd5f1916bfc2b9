"""How many jobs a cluster takes at a time, learned from what it refuses: what is taken runs, and the rest follows later."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rlrt.errors import UserError

PAUSE_S = 30.0
"""Seconds before jobs that SLURM refused are submitted again, while other jobs are active."""
LIMIT = re.compile(r"limit|qos|assoc|max|too many|unavailable|unable to accept", re.IGNORECASE)
"""Words of a refusal that says "not now": a limit on submitted jobs, which jobs that end make room under."""


class Refused(UserError):
    """SLURM took none of the jobs of a submission; it may take fewer, or take them later."""


class Limit:
    """The most jobs that a cluster takes at a time, as far as it has said so.

    Args:
        pause_s: seconds until it is asked again, although no job has ended.
    """

    def __init__(self, pause_s: float = PAUSE_S) -> None:
        self._pause_s, self._until, self._said = pause_s, 0.0, -1
        self._most: int | None = None

    def room(self, alive: int) -> int | None:
        """Return how many more jobs may be submitted now beside ``alive`` active ones; None: any number."""
        if time.monotonic() >= self._until:
            return None if self._most is None else max(1, self._most - alive)
        return 0 if self._most is None else max(0, self._most - alive)

    def taken(self) -> None:
        """Note that a submission was taken after a pause: the limit may be another now."""
        if time.monotonic() >= self._until:
            self._most = None

    def refused(self, error: UserError, alive: int) -> str:
        """Note a refusal beside ``alive`` active jobs; return a message for the user, "" if it would say nothing new."""
        self._until = time.monotonic() + self._pause_s
        self._most = alive if isinstance(error, Refused) else None
        if self._most is None:
            return f"WARNING: {error} It is tried again in {self._pause_s:.0f} s."
        before, self._said = self._said, alive
        return (
            ""
            if before == alive
            else f"WARNING: {error} {alive} jobs are with SLURM; the others follow when it takes more."
        )


def submit_all(folders: Sequence[Path], size: int, submit: Callable[[Sequence[Path]], None]) -> UserError | None:
    """Submit jobs in groups of at most ``size``, smaller ones where SLURM refuses; return the refusal at which it ended.

    Args:
        submit: submits one group, whole or not at all.
    """
    rest = list(folders)
    while rest:
        try:
            submit(rest[:size])
            rest = rest[size:]
        except Refused as error:
            if len(rest[:size]) == 1:
                return error
            size = len(rest[:size]) // 2
        except UserError as error:
            return error
    return None
