"""The interface of a task: what a data class must offer, and what it may. Ids that are functions of a problem's content.

``rlrt.keys.with_defaults`` completes a class that offers only the required part, so that nobody asks what a task has.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

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
        special_tokens: what happens to a problem whose text spells a control token of the model: ``escape`` (the token is
            encoded as plain text) or ``refuse``.
        families: True if ``family`` tells kinds of solutions apart; evaluations then count them.
        shares: of a step's prompts, by ``Prompt.source``; None: a step takes from all prompts alike.

    A prompt's id is the name of its problem in seeds and records: no two prompts may have the same.
    """

    train: Sequence[Prompt]
    heldout: Sequence[Prompt]
    max_prompt_tokens: int | None = None
    shares: Mapping[str, float] | None = None
    special_tokens: str = "escape"
    families: bool = False

    def check_installed(self) -> None:
        """Refuse what the task needs and this environment lacks, before anything is read or built; raises UserError."""

    def prepare(self) -> None:
        """Read or enumerate the problems; called once, before anything else. Raises UserError for bad data."""
        raise TypeError(f"{type(self).__name__} does not define prepare")

    def grade(self, prompt: Prompt, text: str) -> Grade:
        """Judge one response, given without special tokens."""
        raise TypeError(f"{type(self).__name__} does not define grade")

    def canonical(self, prompt: Prompt, text: str) -> str:
        """What two correct responses must share to count as the same solution."""
        raise TypeError(f"{type(self).__name__} does not define canonical")

    def family(self, prompt: Prompt, text: str) -> str:
        """What two correct responses must share to be solutions of one kind; asked for if ``families``."""
        raise TypeError(f"{type(self).__name__} does not define family")

    def start_grading(self, pairs: Sequence[tuple[Prompt, str]]) -> Callable[[], list[Grade]]:
        """Begin to judge many responses beside other work; call the result for the grades. By default they are judged then."""
        return lambda: [self.grade(prompt, text) for prompt, text in pairs]

    def extracted(self, prompt: Prompt, text: str) -> str | None:
        """The part of a response that is graded, for a person to read; None: nobody says. Not asked for a verdict."""
        return None

    def prompt_limit(self, prompt: Prompt) -> int | None:
        """The most tokens that a prompt may have; None: any number."""
        return self.max_prompt_tokens

    def refuses_control_tokens(self, prompt: Prompt) -> bool:
        """True if a problem whose text spells a control token of the model must not be used."""
        return self.special_tokens == "refuse"

    def grade_truncated(self, prompt: Prompt, text: str) -> Grade:
        """Judge a response that met the length limit; the verifier is not asked, and it is never correct.

        Under ``engine.grade_truncated`` a truncated response goes to ``start_grading`` instead.
        """
        return Grade(correct=False, reward=0.0)

    @property
    def dropped(self) -> Counter[str]:
        """How many problems were dropped, by reason."""
        return vars(self).setdefault("_dropped", Counter())

    @dropped.setter
    def dropped(self, counts: Counter[str]) -> None:
        vars(self)["_dropped"] = counts

    @property
    def remarks(self) -> dict[str, str]:
        """What ``report`` says beside a reason, in parentheses: an example."""
        return vars(self).setdefault("_remarks", {})

    def report(self) -> str:
        """The dropped problems with their number, for the terminal; empty if there are none."""
        return ", ".join(
            f"{count} x {reason}" + (f" ({self.remarks[reason]})" if reason in self.remarks else "")
            for reason, count in sorted(self.dropped.items())
            if count
        )

    def close(self) -> None:
        """End whatever was started."""
