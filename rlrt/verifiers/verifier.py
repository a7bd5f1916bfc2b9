"""The interface of verifiers, exact match, and a verifier that runs a function in killable processes."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from rlrt.types import Grade, truth
from rlrt.verifiers.answers import after_thinking, final_answer, spaced

log = logging.getLogger("rlrt")
Pending = Callable[[], list[Grade]]
"""A function that waits for the requested grades and returns them in order."""
FIRST_S = 60.0
"""Seconds that a process gets for its first answer: it must import its libraries."""
GRACE_S = 5.0
"""Seconds that the processes get to end by themselves."""
REMEMBERED = 100_000
"""Maximum number of cached verdicts: the rollouts of a group often end in the same answer."""


class Verifier(Protocol):
    """A grader of responses against expected answers."""

    def start(self, pairs: Sequence[tuple[Any, str]]) -> Pending:
        """Start to grade every (expected answer, response); return at once if grading can run in the background."""
        ...

    def extracted(self, response: str) -> str:
        """Return the part of a response that is graded, for a person to read."""
        ...

    def close(self) -> None:
        """End the verifier's processes."""
        ...


class ExactMatch:
    """1 if the final answer equals the expected one; runs of white space count as one space, and none at the ends."""

    def extracted(self, response: str) -> str:
        """Return the part of a response that is compared."""
        return spaced(final_answer(after_thinking(response)))

    def start(self, pairs: Sequence[tuple[Any, str]]) -> Pending:
        """Grade at once."""
        grades = [verdict(self.extracted(t) == spaced(a)) for a, t in pairs]
        return lambda: grades

    def close(self) -> None:
        """Do nothing: there are no processes."""


class InProcesses:
    """A function's verdicts, computed in separate processes with a hard time limit for each answer.

    pebble kills a process that exceeds the limit, its answer counts as an error, and a new process replaces it; other answers
    are not affected. An exception in the function is an error too: neither says anything about the answer. Equal pairs of
    expected answer and response are graded once.

    Args:
        judge: (expected answer, response) -> True if correct; importable by name in another process.
        timeout_s: maximum seconds for one answer.
        workers: number of processes, started at the first answer.
        reduced: response -> the part of it that ``judge`` gets.
        warm_up: a pair whose grading makes a process import its libraries.
        at_sight: ``judge``'s verdict on pairs that need no process; None for all other pairs.
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
        self._told = False
        self._asked: dict[tuple[Hashable, str], Any] = {}

    def extracted(self, response: str) -> str:
        """Return the part of a response that the function gets."""
        return self._reduced(response)

    def start(self, pairs: Sequence[tuple[Any, str]]) -> Pending:
        """Send the answers to the processes."""
        reduced_pairs = [(expected, self._reduced(response)) for expected, response in pairs]
        answers = [self._ask(pair) for pair in reduced_pairs]

        def wait() -> list[Grade]:
            grades = [verdict(a) if isinstance(a, bool) else self._result(a) for a in answers]
            for pair, grade in zip(reduced_pairs, grades, strict=True):
                if grade.error:
                    self._asked.pop(pair, None)  # graded again when the same pair returns
            if len(self._asked) > REMEMBERED:
                self._asked.clear()
            return grades

        return wait

    def _ask(self, pair: tuple[Any, str]) -> Any:
        """Return the verdict at sight, or the future of one; what fails at sight is left to a process, where it is an error."""
        try:
            known = self._at_sight(*pair)
        except Exception:  # a strange answer must not end the run
            known = None
        if known is not None:
            return known
        if pair not in self._asked:
            self._asked[pair] = self._processes().schedule(self._judge, args=pair, timeout=self._timeout_s)
        return self._asked[pair]

    def _result(self, future: Any) -> Grade:
        try:
            given = future.result()
        except Exception:  # timed out, crashed, or raised by the function
            return Grade(correct=False, reward=0.0, error=True)
        correct = truth(given)
        if correct is not None:
            return verdict(correct)
        if not self._told:
            self._told = True
            log.warning(
                "data.verifier: expected True or False, got %.80r; such an answer is counted as an error", given
            )
        return Grade(correct=False, reward=0.0, error=True)

    def _processes(self) -> Any:
        if self._pool is None:
            from pebble import ProcessPool

            # spawn, not fork: a fork would copy torch's threads and locks in an arbitrary state
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
            try:  # a process that is just starting ends by itself; if killed, it would print a traceback
                self._pool.join(GRACE_S)
            except TimeoutError:
                self._pool.stop()
                self._pool.join()
            self._pool = None
            self._asked.clear()


def verdict(correct: bool) -> Grade:
    """Return a grade without reward shaping."""
    return Grade(correct=correct, reward=float(correct))
