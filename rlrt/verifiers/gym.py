"""reasoning-gym's own scoring: a score of 1 is correct, anything less is not.

Some of its tasks give a partial score for junk, so only a full score counts. A problem is a function of (task, size, seed,
number, the task's own arguments): each process makes the problems that it must score, and caches them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import warnings
from collections.abc import Iterator
from typing import Any

Problem = tuple[str, int, int, int] | tuple[str, int, int, int, str]
"""Task, size of its data set, seed and number; and the task's own arguments as JSON, without which it has its defaults."""
CACHED_PROBLEMS = 20_000
"""Number of problems that each process caches."""


def arguments_of(task: str) -> dict[str, Any]:
    """Return a task's own arguments with their defaults; None for one that must be given."""
    with quiet():
        import reasoning_gym  # registers the tasks
        from reasoning_gym.factory import DATASETS

        assert reasoning_gym
    fields = [f for f in dataclasses.fields(DATASETS[task][1]) if f.name not in ("seed", "size")]
    return {f.name: default_of(f) for f in fields}


def default_of(one: dataclasses.Field) -> Any:
    """Return a field's default; None without one."""
    if one.default_factory is not dataclasses.MISSING:
        return one.default_factory()
    return None if one.default is dataclasses.MISSING else one.default


@functools.cache
def generator(task: str, size: int, seed: int, arguments: str = "{}") -> Any:
    """Return a task's data set, which makes its problems on demand; ``arguments`` are the task's own, as JSON."""
    with quiet():
        import reasoning_gym

        return reasoning_gym.create_dataset(task, size=size, seed=seed, **json.loads(arguments))


@functools.lru_cache(maxsize=CACHED_PROBLEMS)
def entry(problem: Problem) -> dict[str, Any]:
    """Return one problem: ``question``, ``answer``, ``metadata``."""
    task, size, seed, number, *arguments = problem
    with quiet():
        return dict(generator(task, size, seed, *arguments)[number])


def scored(problem: Problem, answer: str) -> bool:
    """True if reasoning-gym gives an answer the full score; raises whatever its scoring raises."""
    task, size, seed, _, *arguments = problem
    with quiet():
        return float(generator(task, size, seed, *arguments).score_answer(answer, entry(problem))) == 1.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress reasoning-gym's warnings (files that it leaves open, numpy's on junk)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
