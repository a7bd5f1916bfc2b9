"""Rewards by plain functions, beside the verifier's verdict, each with a weight."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlrt.errors import UserError, first_line
from rlrt.keys import key
from rlrt.tasks.base import Task
from rlrt.tasks.graded import function_at
from rlrt.types import Grade, Prompt, finite

Reward = Callable[[str, str, Mapping[str, Any]], float]
"""(question, response, the problem's row) -> reward."""
FORM = "an import path, or {function: PATH, weight: NUMBER}"


@dataclass
class Rewarded(Task):
    """A task whose reward is ``verifier_weight`` for a correct answer plus the weighted rewards of functions.

    The verdict stays the verifier's. A function that raises, or gives no finite number, makes the grade an error.
    """

    rewards: dict[str, Any] | None = key(
        "rewards by functions (question, response, row) -> float, by a name of yours: an import path, or "
        "{function: PATH, weight: NUMBER}; each is logged as reward/NAME; null: none"
    )
    verifier_weight: float = key("reward of a correct answer, beside those of rewards", least=0)
    _functions: dict[str, tuple[Reward, float]] = field(default_factory=dict, init=False, repr=False)

    def find_rewards(self, section: str = "data") -> None:
        """Import the functions that ``rewards`` names.

        Raises:
            UserError: for a name that cannot be logged, a value of another form, or a path without a function.
        """
        self._functions = {
            name: reward_of(name, value, f"{section}.rewards") for name, value in (self.rewards or {}).items()
        }

    def start_grading(self, pairs: Sequence[tuple[Prompt, str]]) -> Callable[[], list[Grade]]:
        """Start the verifier; the functions are called when it is waited for."""
        pending = super().start_grading(pairs)
        if not self._functions and self.verifier_weight == 1.0:
            return pending
        return lambda: [
            self._rewarded(prompt, text, grade) for (prompt, text), grade in zip(pairs, pending(), strict=True)
        ]

    def grade_truncated(self, prompt: Prompt, text: str) -> Grade:
        """Grade a truncated response: wrong, with the functions' rewards; else one that punishes length would spare it."""
        return self._rewarded(prompt, text, super().grade_truncated(prompt, text))

    def _rewarded(self, prompt: Prompt, text: str, grade: Grade) -> Grade:
        """Add the functions' rewards to a verdict.

        Raises:
            RuntimeError: naming the function that raised or gave no finite number.
        """
        if grade.error or not (self._functions or self.verifier_weight != 1.0):
            return grade
        parts = {name: asked(name, function, prompt, text) for name, (function, _) in self._functions.items()}
        total = self.verifier_weight * float(grade.correct)
        total += math.fsum(weight * parts[name] for name, (_, weight) in self._functions.items())
        return replace(grade, reward=total, parts=parts)


def asked(name: str, function: Reward, prompt: Prompt, text: str) -> float:
    """Return a function's reward.

    Raises:
        RuntimeError: if it raises, or gives no finite number.
    """
    try:
        given = function(prompt.text, text, dict(prompt.row or {}))  # its own: what it changes is no other answer's row
    except (Exception, SystemExit) as error:  # a user's function raises anything
        raise RuntimeError(f"data.rewards.{name}: {type(error).__name__}: {first_line(error)}") from error
    reward = finite(given)
    if reward is None:
        raise RuntimeError(f"data.rewards.{name}: expected a finite number, got {given!r:.80}")
    return reward


def reward_of(name: str, value: Any, section: str) -> tuple[Reward, float]:
    """Return the function and the weight of one entry of ``rewards``.

    Raises:
        UserError: naming the key.
    """
    where = f"{section}.{name}"
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in ("mean", "correct_share", "verifier_error_share"):
        raise UserError(
            f"{where}: expected a name of letters, digits and _ that no metric under reward/ has, got {name!r}; rename it."
        )
    entry = {"function": value} if isinstance(value, str) else value
    if not isinstance(entry, Mapping) or "function" not in entry or set(entry) - {"function", "weight"}:
        raise UserError(f"{where}: expected {FORM}, got {value!r:.80}.")
    weight, path = entry.get("weight", 1.0), entry["function"]
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise UserError(f"{where}.weight: expected a finite number, got {weight!r:.80}.")
    expected = "the import path of a function (question, response, row) -> float"
    return function_at(str(path), where, expected, arguments=3), float(weight)
