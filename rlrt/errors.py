"""The one exception that is shown to users as a sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave is not usable: what was expected, what came, where, and what to do.

    Entry points print it without a traceback and exit with code 2.
    """


class DiskFull(UserError):
    """No space is left. Unlike other mistakes it may be gone when the run is started again."""


class RankLost(RuntimeError):
    """Another process of this run died, failed, or kept the others waiting; the message names it. It can be tried again."""


MOST_NAMES = 20
"""More valid names than these are not listed in a message."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the valid name nearest to ``name``, or the valid names where none is near and they are few."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Valid: {', '.join(names)}." if 0 < len(names) <= MOST_NAMES else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, at most 200 characters; the name of its type where it says nothing."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
    return text if len(text) <= 200 else text[:197] + "..."
