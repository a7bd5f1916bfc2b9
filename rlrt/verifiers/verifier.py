"""What a task asks of a verifier, the one that compares letters, and the one that asks a function in killable processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from rlrt.types import Grade
from rlrt.verifiers.answers import after_thinking, final_answer, normalised

Pending = Callable[[], list[Grade]]
"""Waits for grades that were asked for, and gives them in order."""
FIRST_S = 60.0
"""Seconds that a process may take for its first answer: it has to import what it needs."""
REMEMBERED = 100_000
"""Verdicts that are kept: the rollouts of a group often end in the same answer."""


class Verifier(Protocol):
    """Grades responses against expected answers."""

    def start(self, pairs: Sequence[tuple[Any, str]]) -> Pending:
        """Begin to grade every (expected answer, response), and return at once where that can be done beside other work."""
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


class ExactMatch:
    """1 if the final answer equals the expected one, white space apart."""

    def start(self, pairs: Sequence[tuple[Any, str]]) -> Pending:
        """Graded at once."""
        grades = [verdict(normalised(final_answer(after_thinking(t))) == normalised(a)) for a, t in pairs]
        return lambda: grades

    def close(self) -> None:
        """Nothing to let go of."""


class InProcesses:
    """A function's verdict, asked for in processes of its own with a hard time limit for each answer.

    A process that is late is killed by pebble, its answer counted as an error, and another process takes its place; the other
    answers are not disturbed. Whatever the function raises is an error too: neither says anything about the answer. Equal
    questions are asked once.

    Args:
        judge: (expected answer, response) -> whether it is right; importable by name in another process.
        timeout_s: seconds that one answer may take.
        workers: processes; started at the first answer.
        reduced: the part of a response that ``judge`` is to see.
        warm_up: a question that makes a process import what it needs.
    """

    def __init__(
        self,
        judge: Callable[[Any, str], bool],
        timeout_s: float,
        workers: int,
        reduced: Callable[[str], str] = after_thinking,
        warm_up: tuple[Hashable, str] | None = None,
    ) -> None:
        self._judge, self._timeout_s, self._workers = judge, timeout_s, workers
        self._reduced, self._warm_up = reduced, warm_up
        self._pool: Any = None
        self._known: dict[tuple[Hashable, str], Grade] = {}

    def start(self, pairs: Sequence[tuple[Any, str]]) -> Pending:
        """Hand the answers to the processes."""
        asked = [(expected, self._reduced(response)) for expected, response in pairs]
        futures = {
            pair: self._processes().schedule(self._judge, args=pair, timeout=self._timeout_s)
            for pair in dict.fromkeys(asked)
            if pair not in self._known
        }

        def wait() -> list[Grade]:
            fresh = {pair: self._result(future) for pair, future in futures.items()}
            known = self._known | fresh if fresh else self._known
            grades = [known[pair] for pair in asked]
            if len(self._known) > REMEMBERED:
                self._known.clear()
            self._known.update({pair: grade for pair, grade in fresh.items() if not grade.error})
            return grades

        return wait

    @staticmethod
    def _result(future: Any) -> Grade:
        try:
            return verdict(bool(future.result()))
        except Exception:  # late, crashed, or whatever the function raises
            return Grade(correct=False, reward=0.0, error=True)

    def _processes(self) -> Any:
        if self._pool is None:
            from pebble import ProcessPool

            # spawned: a fork would copy torch's threads and locks in whatever state they are
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(max_workers=self._workers, context=context)
            if self._warm_up is not None:
                first = [self._pool.schedule(self._judge, args=self._warm_up, timeout=FIRST_S)] * self._workers
                for future in first:
                    self._result(future)
        return self._pool

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


def verdict(correct: bool) -> Grade:
    """A grade without shaping."""
    return Grade(correct=correct, reward=float(correct))
