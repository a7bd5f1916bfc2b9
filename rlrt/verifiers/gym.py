"""reasoning-gym's own scoring: a score of 1 is correct, anything less is not.

Some of its tasks give a partial score for junk, so only a full score counts. A problem is a function of (task, size, seed,
number): each process makes the problems that it must score, and caches them.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

Problem = tuple[str, int, int, int]
"""Task, size of its data set, seed and number."""
CACHED_PROBLEMS = 20_000
"""Number of problems that each process caches."""


@functools.cache
def generator(task: str, size: int, seed: int) -> Any:
    """Return a task's data set, which makes its problems on demand."""
    with quiet():
        import reasoning_gym

        return reasoning_gym.create_dataset(task, size=size, seed=seed)


@functools.lru_cache(maxsize=CACHED_PROBLEMS)
def entry(problem: Problem) -> dict[str, Any]:
    """Return one problem: ``question``, ``answer``, ``metadata``."""
    task, size, seed, number = problem
    with quiet():
        return dict(generator(task, size, seed)[number])


def scored(problem: Problem, answer: str) -> bool:
    """True if reasoning-gym gives an answer the full score; raises whatever its scoring raises."""
    task, size, seed, _ = problem
    with quiet():
        return float(generator(task, size, seed).score_answer(answer, entry(problem))) == 1.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress reasoning-gym's warnings (files that it leaves open, numpy's on junk)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
