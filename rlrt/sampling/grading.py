"""What a grader gives becomes a grade that can be trained on: a finite reward, or an error.

An error says nothing about the answer. The rollout is left out of its group's baseline, of the loss and its denominators, and
of the means of the rewards. It is counted in ``reward/verifier_error_share``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlrt.errors import UserError, first_line
from rlrt.types import Grade, finite, truth

log = logging.getLogger("rlrt")
ERROR = Grade(correct=False, reward=0.0, error=True)
"""The grade of a response that the grader could not judge."""
OWN_NAMES = frozenset(["mean", "correct_share", "verifier_error_share"])
"""Names under ``reward/`` that a reward's part cannot have."""


class Door:
    """Asks a task's grader, and lets only grades through. The first failure is told, all are counted by the metric.

    Args:
        task: the name of the task's class, for messages.
    """

    def __init__(self, task: str) -> None:
        self._task, self._told = task, False

    def begin(self, start: Callable[[], Callable[[], Any]]) -> Callable[[], Grade]:
        """Start the grading of one response; call the result for its grade. Whatever the grader raises is an error of this
        response."""
        try:
            pending = start()
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a grader may raise anything
            self._tell(raised(error))
            return lambda: ERROR
        return lambda: self._wait(pending)

    def _wait(self, pending: Callable[[], Any]) -> Grade:
        try:
            given = pending()
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a grader may raise anything
            self._tell(raised(error))
            return ERROR
        grade = self.settled(given)
        if grade.error and not given.error:
            self._tell(f"gave {given!r:.120}, whose reward is no finite number or whose verdict is none")
        return grade

    def settled(self, given: Any) -> Grade:
        """Return a grade whose verdict is a bool and whose rewards are finite floats; ``ERROR`` for one that has no such.

        Raises:
            UserError: for what is no grade, or a part whose name cannot be logged.
        """
        if not isinstance(given, Grade):
            raise UserError(
                f"data: expected a rlrt.types.Grade from {self._task}.grade, got {given!r:.60}; return "
                "Grade(correct, reward)."
            )
        for name in given.parts:
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name) or name in OWN_NAMES:
                raise UserError(
                    f"data: expected names of letters, digits and _ in Grade.parts from {self._task}.grade, none of "
                    f"{', '.join(sorted(OWN_NAMES))}, got {name!r}; rename it."
                )
        if given.error:
            return ERROR
        correct, reward = truth(given.correct), finite(given.reward)
        parts = {name: finite(value) for name, value in given.parts.items()}
        known = {name: value for name, value in parts.items() if value is not None}
        if correct is None or reward is None or len(known) < len(parts):
            return ERROR
        return replace(given, correct=correct, reward=reward, parts=known)

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "data: %s.grade %s; such a response is left out of its group and of the loss, and counted in "
                "reward/verifier_error_share",
                self._task,
                what,
            )


def raised(error: BaseException) -> str:
    """Return what a grader raised, in words."""
    return f"raised {type(error).__name__}: {first_line(error)}"
