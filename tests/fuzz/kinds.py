"""The kinds of inputs. A kind is a function from a seed to inputs without end; a new one is a module here and a line below."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

from tests.fuzz import models, overrides, tables
from tests.fuzz.judge import Case

KINDS: Mapping[str, Callable[[int], Iterator[Case]]] = {
    "overrides": overrides.cases,
    "tables": tables.cases,
    "models": models.cases,
}


def cases(seed: int, count: int) -> list[Case]:
    """``count`` inputs of all kinds in turn."""
    streams = itertools.cycle([make(seed) for make in KINDS.values()])
    return [next(next(streams)) for _ in range(count)]
