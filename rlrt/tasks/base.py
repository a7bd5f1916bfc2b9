"""What the loop asks of a task, and ids that are functions of a problem's content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from rlrt.types import Grade, Prompt

ID_DIGITS = 16
"""Hexadecimal digits of an id: two of a million problems get the same one with a probability of about 3e-8."""


def content_id(*texts: str) -> str:
    """An id that is a function of what a problem is, not of the file, the row or the folder where the problem stands.

    Args:
        texts: what makes the problem: question, answer, solution. Written as JSON, so that ("ab", "c") is not ("a", "bc").
    """
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:ID_DIGITS]


class Task(Protocol):
    """Prompts and a verifier. Implementations are dataclasses whose fields are the keys of ``data.*``.

    A prompt's id is the name of its problem in seeds and records: no two prompts may have the same (``rlrt.execution.data``).
    """

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
