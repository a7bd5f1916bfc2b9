"""The exceptions that users see as one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An input of the user cannot be used; the message says what was expected, what came, where, and what to do.

    Entry points print it without a traceback and exit with code 2.
    """


class FolderLost(UserError):
    """A run's or a sweep's folder takes nothing more: it was removed, or the right to write there was taken away.

    Unlike other user errors, this one may be gone when the same command is given again.
    """


class FolderRemoved(FolderLost):
    """The folder was removed while it was in use."""


class Replaced(FolderLost):
    """Another process has taken over the folder; this one must write nothing more there."""


class DiskFull(FolderLost):
    """The disk takes no more bytes."""


class NotMet(UserError):
    """The ranks of a run could not meet. Unlike other user errors, not all ranks have it: each says its own."""


class RankLost(RuntimeError):
    """Another rank died, failed, or kept the others waiting; the message names it. The run can be started again."""


class Interrupted(Exception):
    """A run was asked to end, and the step that it is in would end too late: what the step did is dropped."""


MOST_NAMES = 40
"""A message lists the valid names only if there are at most this many."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with the closest valid name; without a close one, the valid names if they are few."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Valid: {', '.join(names)}." if 0 < len(names) <= MOST_NAMES else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message (with the next one where it ends in a colon), at most 200 characters; without
    a message the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]  # a heading says nothing by itself
    text = text.encode("utf-8", "backslashreplace").decode()  # half a character can be neither printed nor logged
    return text if len(text) <= 200 else text[:197] + "..."


SHOWN = 80
"""Characters of a value that a message repeats."""
MOST = 600
"""Characters of a message."""


def shown(value: object) -> str:
    """Return a value for a message, as Python writes it; of a long one the beginning and the length."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
"""Units of bytes, each 1000 of the next."""


def amount(count: float) -> str:
    """Return bytes for a message, in the largest unit of which there is at least one."""
    unit, whole = next(((unit, whole) for unit, whole in UNITS if abs(count) >= whole), ("bytes", 1))
    return f"{count:.0f} bytes" if whole == 1 else f"{count / whole:.1f} {unit}"


def brief(message: str) -> str:
    """Return a message on at most three lines; of one that is longer than ``MOST`` the beginning and the end."""
    lines = [line for line in message.splitlines() if line.strip()]
    text = "\n".join(lines) if len(lines) <= 3 else " ".join(map(str.strip, lines))
    return text if len(text) <= MOST else f"{text[: MOST - 200]} ... {text[-195:]}"
