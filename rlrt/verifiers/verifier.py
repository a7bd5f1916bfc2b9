"""What a task asks of a verifier, and the one that compares letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlrt.types import Grade
from rlrt.verifiers.answers import after_thinking, final_answer, normalised


class Verifier(Protocol):
    """Grades responses against final answers, many at once."""

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """A grade for every (expected answer, response)."""
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


class ExactMatch:
    """1 if the final answer equals the expected one, white space apart."""

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """A grade for every (expected answer, response)."""
        return [verdict(normalised(final_answer(after_thinking(t))) == normalised(a)) for a, t in pairs]

    def close(self) -> None:
        """Nothing to let go of."""


def verdict(correct: bool) -> Grade:
    """A grade without shaping."""
    return Grade(correct=correct, reward=float(correct))
