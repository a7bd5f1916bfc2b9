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
GRACE_S = 5.0
"""Seconds that the processes get to end by themselves."""
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
        at_sight: what needs no process: the same verdict as ``judge``'s, or None.
    """

    def __init__(
        self,
        judge: Callable[[Any, str], bool],
        timeout_s: float,
        workers: int,
        reduced: Callable[[str], str] = after_thinking,
        warm_up: tuple[Hashable, str] | None = None,
        at_sight: Callable[[Any, str], bool | None] = lambda expected, response: None,
    ) -> None:
        self._judge, self._timeout_s, self._workers = judge, timeout_s, workers
        self._reduced, self._warm_up, self._at_sight = reduced, warm_up, at_sight
        self._pool: Any = None
        self._asked: dict[tuple[Hashable, str], Any] = {}

    def start(self, pairs: Sequence[tuple[Any, str]]) -> Pending:
        """Hand the answers to the processes."""
        asked = [(expected, self._reduced(response)) for expected, response in pairs]
        answers = [self._ask(pair) for pair in asked]

        def wait() -> list[Grade]:
            grades = [verdict(a) if isinstance(a, bool) else self._result(a) for a in answers]
            for pair, grade in zip(asked, grades, strict=True):
                if grade.error:
                    self._asked.pop(pair, None)  # asked again when it comes again
            if len(self._asked) > REMEMBERED:
                self._asked.clear()
            return grades

        return wait

    def _ask(self, pair: tuple[Any, str]) -> Any:
        """A verdict at sight, or the future of one."""
        seen = self._at_sight(*pair)
        if seen is not None:
            return seen
        if pair not in self._asked:
            self._asked[pair] = self._processes().schedule(self._judge, args=pair, timeout=self._timeout_s)
        return self._asked[pair]

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
                warm_up = {"args": self._warm_up, "timeout": FIRST_S}
                for future in [self._pool.schedule(self._judge, **warm_up) for _ in range(self._workers)]:
                    self._result(future)
        return self._pool

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()
            try:  # a process that is just starting ends by itself; killed, it would print a traceback of its own
                self._pool.join(GRACE_S)
            except TimeoutError:
                self._pool.stop()
                self._pool.join()
            self._pool = None
            self._asked.clear()


def verdict(correct: bool) -> Grade:
    """A grade without shaping."""
    return Grade(correct=correct, reward=float(correct))
