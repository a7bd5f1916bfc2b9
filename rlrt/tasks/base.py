"""The interface of a task: what a data class must offer, and what it may. Ids that are functions of a problem's content.

``rlrt.keys.with_defaults`` completes a class that offers only the required part, so that nobody asks what a task has.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence

from rlrt.types import Grade, Prompt

ID_DIGITS = 16
"""Hexadecimal digits of an id: two of a million problems get the same one with a probability of about 3e-8."""
REQUIRED = ("prepare", "grade", "canonical")
"""What a data class must define itself."""


def content_id(*texts: str) -> str:
    """An id that is a function of what a problem is, not of the file, the row or the folder where the problem stands.

    Args:
        texts: what makes the problem: question, answer, solution. Written as JSON, so that ("ab", "c") is not ("a", "bc").
    """
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:ID_DIGITS]


class Task:
    """Prompts and a verifier. Implementations are dataclasses whose fields are the keys of ``data.*``.

    Required: ``prepare``, which sets ``train`` and ``heldout``; ``grade``; ``canonical``. All else has a default.
    A class need not inherit from ``Task``.

    Attributes:
        train: training prompts in a fixed order.
        heldout: evaluation prompts in a fixed order, disjoint from ``train``.
        max_prompt_tokens: prompts that the model's tokenizer makes longer than this are dropped; None: no prompt is.

    A prompt's id is the name of its problem in seeds and records: no two prompts may have the same.
    """

    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    max_prompt_tokens: int | None = None

    def prepare(self) -> None:
        """Read or enumerate the problems; called once, before anything else. Raises UserError for bad data."""
        raise TypeError(f"{type(self).__name__} does not define prepare")

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """Judge one response, given without special tokens."""
        raise TypeError(f"{type(self).__name__} does not define grade")

    def canonical(self, prompt: Prompt, text: str) -> str:
        """What two correct responses must share to count as the same solution."""
        raise TypeError(f"{type(self).__name__} does not define canonical")

    def start_grading(self, pairs: Sequence[tuple[Prompt, str]]) -> Callable[[], list[Grade]]:
        """Begin to judge many responses beside other work; call the result for the grades. By default they are judged then."""
        return lambda: [self.grade(prompt, text) for prompt, text in pairs]

    def grade_truncated(self, prompt: Prompt, text: str) -> Grade:
        """Judge a response that met the length limit; the verifier is not asked, and it is never correct."""
        return Grade(correct=False, reward=0.0)

    @property
    def dropped(self) -> Counter[str]:
        """How many problems were dropped, by reason."""
        return vars(self).setdefault("_dropped", Counter())

    @dropped.setter
    def dropped(self, counts: Counter[str]) -> None:
        vars(self)["_dropped"] = counts

    def report(self) -> str:
        """The dropped problems with their number, for the terminal; empty if there are none."""
        return ", ".join(f"{count} x {reason}" for reason, count in sorted(self.dropped.items()) if count)

    def close(self) -> None:
        """End whatever was started."""
