"""reasoning-gym's own scoring: 1 is right, anything less is not.

Some of its tasks pay a share of the points for junk, so that only a full score counts. A problem is a function of (task, size,
seed, number): a process makes the one it is asked about, and keeps it.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

Problem = tuple[str, int, int, int]
"""Task, size of its data set, seed and number."""
KEPT = 20_000
"""Problems that a process keeps."""


@functools.cache
def generator(task: str, size: int, seed: int) -> Any:
    """A task's data set, whose problems are made when they are asked for."""
    with quiet():
        import reasoning_gym

        return reasoning_gym.create_dataset(task, size=size, seed=seed)


@functools.lru_cache(maxsize=KEPT)
def entry(problem: Problem) -> dict[str, Any]:
    """One problem: ``question``, ``answer``, ``metadata``."""
    task, size, seed, number = problem
    with quiet():
        return dict(generator(task, size, seed)[number])


def scored(problem: Problem, answer: str) -> bool:
    """Whether reasoning-gym gives an answer the full score. Raises what its scoring raises."""
    task, size, seed, _ = problem
    with quiet():
        return float(generator(task, size, seed).score_answer(answer, entry(problem))) == 1.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without reasoning-gym's warnings (files that it leaves open, numpy's on junk)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
