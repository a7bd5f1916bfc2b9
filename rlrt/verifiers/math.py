"""Mathematical equality by math-verify, in processes of their own with a hard time limit.

math-verify 0.9 sets signal handlers (and so raises in threads), may take for ever, is not symmetric (the expected answer goes
first), and takes some wrong answers for right (1/2004! = 1/2006!). A process that is late is killed by pebble, its answer
counted as an error, and another process takes its place; the other answers are not disturbed.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
from collections.abc import Sequence
from typing import Any

from rlrt.types import Grade
from rlrt.verifiers.answers import after_thinking, boxed
from rlrt.verifiers.verifier import verdict

LONGEST = 20_000
"""Characters at a response's end that are looked at: answers stand there, and parsing takes time."""
FIRST_S = 60.0
"""Seconds that a process may take for its first answer: it has to import sympy."""


class MathVerify:
    """Equality of the final answer with the expected one, as mathematics.

    Args:
        timeout_s: seconds that one answer may take.
        workers: processes; started at the first answer.
    """

    def __init__(self, timeout_s: float, workers: int) -> None:
        self._timeout_s, self._workers = timeout_s, workers
        self._pool: Any = None

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """A grade for every (expected answer, response); ``error`` where math-verify failed or was late."""
        if not pairs:
            return []
        futures = [
            self._processes().schedule(equal, args=pair, timeout=self._timeout_s) for pair in map(shortened, pairs)
        ]
        return [self._result(future) for future in futures]

    @staticmethod
    def _result(future: Any) -> Grade:
        try:
            return verdict(bool(future.result()))
        except Exception:  # late, crashed, or whatever sympy raises: all of them say nothing about the answer
            return Grade(correct=False, reward=0.0, error=True)

    def _processes(self) -> Any:
        if self._pool is None:
            from pebble import ProcessPool

            # spawned: a fork would copy torch's threads and locks in whatever state they are
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(max_workers=self._workers, context=context)
            for future in [self._pool.schedule(equal, args=("1", "1"), timeout=FIRST_S) for _ in range(self._workers)]:
                future.result()
        return self._pool

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


def shortened(pair: tuple[str, str]) -> tuple[str, str]:
    """A pair whose response is its end alone."""
    expected, response = pair
    return expected, after_thinking(response)[-LONGEST:]


def equal(expected: str, response: str) -> bool:
    """Whether the response's final answer equals the expected one. Runs in a worker, which may be killed.

    A response that has a box is judged by its last box alone. Raises whatever math-verify or sympy raise, and ValueError for an
    expected answer that cannot be read.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns at each call that the time limit is ours
    gold = parse(in_math(expected), parsing_timeout=None)
    if not gold:
        raise ValueError(f"the expected answer {expected!r} cannot be read")
    inside = boxed(response)
    answer = parse(response if inside is None else f"\\boxed{{{inside}}}", parsing_timeout=None)
    return bool(answer) and bool(verify(gold, answer, timeout_seconds=None))


def in_math(expected: str) -> str:
    """An expected answer as LaTeX mathematics, unless it says so itself."""
    return expected if re.search(r"\$|\\boxed|\\\(|\\\[", expected) else f"${expected}$"
