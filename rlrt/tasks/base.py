"""What the loop asks of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlrt.types import Grade, Prompt


class Task(Protocol):
    """Prompts and a verifier. Implementations are dataclasses whose fields are the keys of ``data.*``."""

    def prepare(self) -> None:
        """Read or enumerate the problems; called once, before anything else. Raises UserError for bad data."""

    @property
    def train(self) -> Sequence[Prompt]:
        """Training prompts in a fixed order."""

    @property
    def heldout(self) -> Sequence[Prompt]:
        """Evaluation prompts in a fixed order, disjoint from ``train``."""

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """Judge one response, given without special tokens."""

    # optional: start_grading(pairs) for many responses beside other work, and close() for what was started

    def canonical(self, prompt: Prompt, text: str) -> str:
        """What two correct responses must share to count as the same solution."""
