"""Base of tasks that a verifier of ``rlrt.verifiers`` grades."""

from __future__ import annotations

import abc
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlrt.errors import UserError, first_line
from rlrt.keys import key
from rlrt.tasks.base import Task
from rlrt.types import Grade, Prompt
from rlrt.verifiers.answers import normalised
from rlrt.verifiers.math import math_verify
from rlrt.verifiers.verifier import ExactMatch, InProcesses, Pending, Verifier


@dataclass
class Graded(Task, abc.ABC):
    """Keys of the verifier, and grading."""

    verifier_timeout_s: float = key(
        "maximum time for one answer; exceeding it is an error, not a wrong answer", "seconds", above=0
    )
    verifier_workers: int = key("number of the verifier's processes", least=1)
    _verifier: Verifier | None = field(default=None, init=False, repr=False)
    _shared: Graded | None = field(default=None, init=False, repr=False)

    @abc.abstractmethod
    def make_verifier(self) -> Verifier:
        """Return the verifier of this task."""

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """Grade 1 if the final answer is the expected one."""
        return self.start_grading([(prompt, text)])()[0]

    def start_grading(self, pairs: Sequence[tuple[Prompt, str]]) -> Pending:
        """Start to grade many responses at once."""
        return self._owned().start([(prompt.answer, text) for prompt, text in pairs])

    def extracted(self, prompt: Prompt, text: str) -> str | None:
        """The part of a response that the verifier reads."""
        return self._owned().extracted(text)

    def _owned(self) -> Verifier:
        """The verifier, which tasks that verify the same way share."""
        owner = self._shared or self
        if owner._verifier is None:
            owner._verifier = owner.make_verifier()
        return owner._verifier

    def share(self, other: Graded) -> None:
        """Reuse another task's verifier, and its processes, when both tasks verify the same way."""
        self._shared = other if other is not self else None

    def close(self) -> None:
        """End the verifier's processes."""
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None

    def canonical(self, prompt: Prompt, text: str) -> str:
        """Return the whole text without white space."""
        return normalised(text)


def verifier_of(name: str, timeout_s: float, workers: int) -> Verifier:
    """Return the verifier ``exact``, ``math``, or one that calls the function (expected answer, response) -> bool at an
    import path.

    Raises:
        UserError: if there is no function at the path.
    """
    if name == "exact":
        return ExactMatch()
    return math_verify(timeout_s, workers) if name == "math" else InProcesses(function_at(name), timeout_s, workers)


VERIFIERS = "exact, math or the import path of a function (expected answer, response) -> bool"


def function_at(path: str, where: str = "data.verifier", expected: str = VERIFIERS, arguments: int = 2) -> Any:
    """Return the function at a dotted import path.

    Args:
        where: the key that names it, for messages.
        expected: what the key takes, for messages.
        arguments: the number of values that it is called with.

    Raises:
        UserError: if there is none, or it cannot be called so.
    """
    module_name, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # importing runs a user's module, which may raise anything
        raise UserError(f"{where}: expected {expected}, got {path!r} ({first_line(error)}).") from None
    if not callable(function):
        raise UserError(f"{where}: {path} is no function.")
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        raise UserError(f"{where}: {path} must return its value; a generator and a coroutine do not.")
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError as error:
        raise UserError(f"{where}: expected {expected}; {path} cannot be called so ({first_line(error)}).") from None
    except ValueError:
        pass  # a function of C may have no signature
    return function
