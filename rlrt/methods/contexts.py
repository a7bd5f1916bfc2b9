"""Teacher contexts: what the teacher is shown beside the question. Each kind is one frozen class; its fields are its
parameters.

Three words, for three things. A *context* says what is to be shown ("the first other correct rollout"). Its *texts* are what it
comes to for the rollouts of a step, one each, or None where a rollout gets no teacher. The prompt builder makes a text and the
question into the teacher's *row* of token ids.

A new kind is a new class with ``texts``; nothing else changes. A kind whose teacher should see another question than the
student (or none) overrides ``question``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rlrt.types import Prompt, Rollout

SPELLING = re.compile(r"(default)|(correct|wrong)(?::(\d+))?")
"""Short spellings that a credit may use instead of a ``Context``."""
ALONE = ("plain", "self", "reference")
"""What a group's only correct rollout may be shown."""


@dataclass(frozen=True)
class Context:
    """A text that the teacher is shown beside the question."""

    def texts(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """One text for each rollout; None: this rollout gets no teacher; an empty text: the teacher sees what the student
        saw."""
        raise TypeError(f"{type(self).__name__} does not define texts")

    def question(self, prompt: Prompt) -> str:
        """The question that stands in the teacher's prompt: the student's own by default."""
        return prompt.text


@dataclass(frozen=True)
class Default(Context):
    """The context that the config's ``teacher.context`` names; ``rlrt.execution.build`` puts that one in its place."""


@dataclass(frozen=True)
class Sibling(Context):
    """Another rollout of the same group.

    Attributes:
        correct: whether it is a correct one or a wrong one.
        number: which of them, by their order in the group, without the rollout itself; from 0.
        alone: what a group's only correct rollout is shown: nothing (``plain``), its own text (``self``) or the data's solution
            (``reference``).
    """

    correct: bool = True
    number: int = 0
    alone: str = "plain"

    def __post_init__(self) -> None:
        if self.number < 0 or self.alone not in ALONE:
            raise ValueError(f"a sibling has a number from 0 and alone in {ALONE}, got {self}")

    def texts(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """The sibling's response. With ``number=0`` a group has at most two distinct texts: the first and the second
        sibling."""
        candidates: dict[int, list[int]] = {}
        for i, rollout in enumerate(rollouts):
            if rollout.grade.correct == self.correct:
                candidates.setdefault(rollout.group, []).append(i)
        texts: list[str | None] = []
        for i, rollout in enumerate(rollouts):
            siblings = [j for j in candidates.get(rollout.group, [])[: self.number + 2] if j != i]
            if self.number < len(siblings):
                texts.append(rollouts[siblings[self.number]].text)
            else:
                texts.append(self._alone(rollout) if self.correct and rollout.grade.correct and not siblings else None)
        return texts

    def _alone(self, rollout: Rollout) -> str | None:
        return {"self": rollout.text, "reference": rollout.prompt.solution}.get(self.alone)


@dataclass(frozen=True)
class FromData(Context):
    """A text that the data has for each prompt, whatever the rollouts are."""

    called: ClassVar[str] = "own"
    """What messages call these texts."""

    def text_of(self, prompt: Prompt) -> str | None:
        """The text of one prompt; None where the data has none."""
        raise TypeError(f"{type(self).__name__} does not define text_of")

    def texts(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """The text of each rollout's prompt."""
        return [self.text_of(rollout.prompt) for rollout in rollouts]


@dataclass(frozen=True)
class Reference(FromData):
    """The data's reference solution."""

    called = "reference"

    def text_of(self, prompt: Prompt) -> str | None:
        """The solution."""
        return prompt.solution


@dataclass(frozen=True)
class ReferenceAlone(Reference):
    """The data's reference solution without the question: what is left of a teacher that is not told what is asked (the view
    P_R of Purified OPSD, arXiv 2607.02234)."""

    def question(self, prompt: Prompt) -> str:
        """None: the template is the reference's, with an empty text in the question's place."""
        return ""


@dataclass(frozen=True)
class Answer(FromData):
    """The data's final answer; the solution where the question states the answer already (RLSD's rule)."""

    called = "answer"

    def text_of(self, prompt: Prompt) -> str | None:
        """The answer, or the solution."""
        return prompt.solution if prompt.states_answer else prompt.final


@dataclass(frozen=True)
class WithoutQuestion(Context):
    """The text of another context, shown without the question: what is left of a teacher that is not told what is asked.

    Attributes:
        of: the context whose text it is; by default the one that the config names.
    """

    of: Context = Default()

    def texts(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """The other context's texts."""
        return self.of.texts(rollouts)

    def question(self, prompt: Prompt) -> str:
        """No question: the teacher's template with an empty text in its place."""
        return ""


@dataclass(frozen=True)
class Nothing(Context):
    """No text at all: the teacher's weights see what the student saw."""

    def texts(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """An empty text for each."""
        return [""] * len(rollouts)


def resolved(context: Context, default: Context) -> Context:
    """A context with ``default`` in the place of ``Default``."""
    if isinstance(context, WithoutQuestion):
        return WithoutQuestion(resolved(context.of, default))
    return default if isinstance(context, Default) else context


def context_of(value: Any) -> Context | None:
    """A context as a credit gives it, or by its short spelling: ``default``; ``correct:K`` and ``wrong:K``, the K-th other
    rollout of the group with that verdict, from 0; ``correct`` and ``wrong``, the first. None for anything else."""
    if isinstance(value, Context):
        return value
    match = SPELLING.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    return Default() if match[1] else Sibling(match[2] == "correct", int(match[3] or 0))


def configured(context: str, on_unique_correct: str) -> Context:
    """The context that ``teacher.context`` and ``teacher.on_unique_correct`` name; the config's check knows the values."""
    data: dict[str, Context] = {"reference": Reference(), "reference_alone": ReferenceAlone(), "answer": Answer()}
    return data.get(context, Sibling(alone=on_unique_correct))


def from_data(context: Context) -> FromData | None:
    """The part of a context that takes its text from the data: the context itself, or what an only correct rollout is shown."""
    if isinstance(context, Sibling) and context.alone == "reference":
        return Reference()
    return context if isinstance(context, FromData) else None
