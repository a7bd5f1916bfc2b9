"""Teacher contexts: what the teacher is shown beside the question. Each kind is one frozen class; its fields are its
parameters.

Three words, for three things. A *context* says what is to be shown ("the first other correct rollout"). Its *texts* are what it
comes to for the rollouts of a step, one each, or None where a rollout gets no teacher. The prompt builder makes a text and the
question into the teacher's *row* of token ids.

A context is written as ``KIND``, ``KIND:CHOICE`` or either with ``@SHARE`` (``context_of``): ``sibling:shortest``,
``reference@0.5``. A new kind is a new class with ``texts``; nothing else changes. A kind whose teacher should see another
question than the student (or none) overrides ``question``.

No rollout is shown its own text by accident. A teacher that sees the response predicts it word for word, so D would measure
whether the rollout has a twin, and not what a solution tells (the leak that arXiv 2606.11709 describes).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from rlrt.seeds import derive
from rlrt.types import Prompt, Rollout

SPELLING = re.compile(r"([a-z_]+)(?::([^@]*))?(?:@(.*))?")
"""Kind, choice and share of a written context."""
PIECE = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")
"""A word, a number or a sign, with the white space before it."""
ALONE = ("plain", "self", "reference")
"""What a group's only correct rollout may be shown."""
CHOICES = ("first", "shortest", "longest", "least_like_mine", "random")
"""Which sibling is shown: by place in the group, by length in tokens, by what it shares with the rollout, by the rollout's
seed."""


def same_text(first: str, second: str) -> bool:
    """True for two texts that are equal but for white space around them."""
    return first.strip() == second.strip()


def beginning(text: str, share: float) -> str:
    """Return the first part of a text: ceil(share * n) of its n pieces. A piece is a word, a number or a sign; none is cut."""
    pieces = PIECE.findall(text)
    return "".join(pieces[: math.ceil(share * len(pieces) - 1e-9)])


@dataclass(frozen=True)
class Context:
    """A text that the teacher is shown beside the question.

    Attributes:
        share: how much of the text is shown, from its beginning: above 0 and at most 1.
    """

    share: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"expected a share above 0 and at most 1, got {self.share:g}")

    def texts(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """One text for each rollout, whole; None: this rollout gets no teacher; an empty text: the teacher sees what the
        student saw."""
        raise TypeError(f"{type(self).__name__} does not define texts")

    def shown(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """``texts``, as much of each as is shown."""
        texts = self.texts(rollouts)
        return texts if self.share == 1 else [None if text is None else beginning(text, self.share) for text in texts]

    def question(self, prompt: Prompt) -> str:
        """The question that stands in the teacher's prompt: the student's own by default."""
        return prompt.text

    def own(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """The rollouts for which all that the context names is their own text, which it does not show them."""
        return [False] * len(rollouts)

    def shorter(self, rollouts: Sequence[Rollout], i: int) -> list[str]:
        """What rollout ``i`` may be shown in place of a text that does not fit, the longest first. Nothing by default."""
        return []


@dataclass(frozen=True)
class Default(Context):
    """The context that the config's ``teacher.context`` names; ``rlrt.execution.build`` puts that one in its place."""


@dataclass(frozen=True)
class Sibling(Context):
    """Another rollout of the same group, with another text.

    Attributes:
        correct: whether it is a correct one or a wrong one.
        number: which of them, in the order of ``choice``; from 0.
        alone: what a correct rollout is shown if no other correct rollout of its group has another text: nothing (``plain``),
            its own text (``self``) or the data's solution (``reference``).
        choice: one of ``CHOICES``; equal ones by their order in the group.
    """

    correct: bool = True
    number: int = 0
    alone: str = "plain"
    choice: str = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number < 0 or self.alone not in ALONE or self.choice not in CHOICES:
            raise ValueError(f"a sibling has a number from 0, alone in {ALONE} and choice in {CHOICES}, got {self}")

    def texts(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """The sibling's response. Under ``first``, ``shortest`` and ``longest`` a group has at most two distinct texts with
        ``number=0``: the first in that order, and for rollouts with that text the next text."""
        texts: list[str | None] = []
        for rollout, others in zip(rollouts, self._others(rollouts), strict=True):
            if self.number < len(others):
                texts.append(others[self.number].text)
            else:
                texts.append(self._alone(rollout) if self.correct and rollout.grade.correct and not others else None)
        return texts

    def own(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """The rollouts whose siblings with the wanted verdict all have their text."""
        groups = self._groups(rollouts)
        siblings = [[other for other in groups.get(mine.group, []) if other is not mine] for mine in rollouts]
        return [
            bool(those) and all(same_text(other.text, mine.text) for other in those)
            for mine, those in zip(rollouts, siblings, strict=True)
        ]

    def shorter(self, rollouts: Sequence[Rollout], i: int) -> list[str]:
        """The texts of the siblings with fewer tokens than the one that is named."""
        group = [rollout for rollout in rollouts if rollout.group == rollouts[i].group]
        others = self._others(group)[next(k for k, rollout in enumerate(group) if rollout is rollouts[i])]
        if self.number >= len(others):
            return []
        limit = length_of(others[self.number])
        shorter = sorted((r for r in others if length_of(r) < limit), key=length_of, reverse=True)
        return [beginning(rollout.text, self.share) for rollout in shorter]

    def _groups(self, rollouts: Sequence[Rollout]) -> dict[int, list[Rollout]]:
        """The rollouts with the wanted verdict, by group."""
        groups: dict[int, list[Rollout]] = {}
        for rollout in rollouts:
            if rollout.grade.correct == self.correct:
                groups.setdefault(rollout.group, []).append(rollout)
        return groups

    def _others(self, rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
        """For each rollout those that it may be shown, in the order of ``choice``: siblings with the wanted verdict and another
        text."""
        groups, pairs = self._groups(rollouts), {}
        if self.choice == "least_like_mine":
            pairs = {id(rollout): pairs_of(rollout) for rollout in rollouts}

        def place(mine: Rollout, other: Rollout) -> int | float:
            if self.choice == "random":
                return derive(mine.seed, "sibling", other.sample)
            if self.choice == "least_like_mine":
                return likeness(pairs[id(mine)], pairs[id(other)])
            return {"shortest": 1, "longest": -1}.get(self.choice, 0) * length_of(other)

        return [
            sorted(
                (sibling for sibling in groups.get(rollout.group, []) if not same_text(sibling.text, rollout.text)),
                key=partial(place, rollout),
            )
            for rollout in rollouts
        ]

    def _alone(self, rollout: Rollout) -> str | None:
        if self.alone == "reference":
            return Reference(hides_own=True).texts([rollout])[0]
        return rollout.text if self.alone == "self" else None


def length_of(rollout: Rollout) -> int:
    """Tokens of a response."""
    return len(rollout.generation.token_ids)


def pairs_of(rollout: Rollout) -> set[tuple[int, int]]:
    """The different pairs of neighbouring tokens of a response, its beginning and its first token among them."""
    ids = rollout.generation.token_ids
    return set(zip([-1, *ids], ids, strict=False))


def likeness(mine: set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
    """2 |common| / (|mine| + |other|) of two sets of token pairs (Dice's coefficient): 0 for nothing in common, 1 for equal
    sets."""
    return 2 * len(mine & other) / max(1, len(mine) + len(other))


@dataclass(frozen=True)
class FromData(Context):
    """A text that the data has for each prompt, whatever the rollouts are.

    Attributes:
        hides_own: whether a rollout with just this text gets no teacher. A credit would measure that the response was shown;
            for a dense term the text is the target, whoever wrote it already.
    """

    hides_own: bool = field(default=False, kw_only=True)

    called: ClassVar[str] = "own"
    """What messages call these texts."""

    def text_of(self, prompt: Prompt) -> str | None:
        """The text of one prompt; None where the data has none."""
        raise TypeError(f"{type(self).__name__} does not define text_of")

    def texts(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """The text of each rollout's prompt."""
        hidden = self.own(rollouts)
        return [None if own else self.text_of(r.prompt) for r, own in zip(rollouts, hidden, strict=True)]

    def own(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """The rollouts whose text is that of the data, where that is hidden from them."""
        return [self.hides_own and same_text(self.text_of(r.prompt) or "", r.text) for r in rollouts]


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

    def shown(self, rollouts: Sequence[Rollout]) -> list[str | None]:
        """As much of each as the other context shows."""
        return self.of.shown(rollouts)

    def own(self, rollouts: Sequence[Rollout]) -> list[bool]:
        """As the other context."""
        return self.of.own(rollouts)

    def shorter(self, rollouts: Sequence[Rollout], i: int) -> list[str]:
        """As the other context."""
        return self.of.shorter(rollouts, i)

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


@dataclass(frozen=True)
class Hint(FromData):
    """The data's hint: a text of its own column, which says less than a solution."""

    called = "hint"

    def text_of(self, prompt: Prompt) -> str | None:
        """The hint."""
        return prompt.hint


KINDS: dict[str, Context] = {
    "default": Default(),
    "sibling": Sibling(),
    "correct": Sibling(),
    "wrong_sibling": Sibling(correct=False),
    "wrong": Sibling(correct=False),
    "reference": Reference(),
    "reference_alone": ReferenceAlone(),
    "answer": Answer(),
    "hint": Hint(),
}
"""What each written kind stands for, before its choice and its share."""
CONFIGURED = ("sibling", "wrong_sibling", "reference", "reference_alone", "answer", "hint")
"""The kinds that ``teacher.context`` names."""


def context_of(value: Any) -> Context | None:
    """A context as a credit gives it, or as it is written: ``KIND[:CHOICE][@SHARE]``.

    ``CHOICE`` belongs to siblings: one of ``CHOICES``, or K for the K-th by place in the group, from 0. ``SHARE`` belongs to
    solutions: the part that is shown. ``correct`` and ``wrong`` are short for ``sibling`` and ``wrong_sibling``.

    Returns:
        None for what is no context and no text of a known kind.

    Raises:
        ValueError: for a known kind with a choice or a share that it cannot have; one clause that says why.
    """
    if isinstance(value, Context):
        return value
    match = SPELLING.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[1] not in KINDS:
        return None
    kind, choice, share = match.groups()
    context = KINDS[kind]
    if choice is not None:
        if not isinstance(context, Sibling):
            raise ValueError(f"{kind} takes no choice after a colon, got {value!r}")
        if choice.isdecimal():
            context = dataclasses.replace(context, number=int(choice))
        elif choice in CHOICES:
            context = dataclasses.replace(context, choice=choice)
        else:
            raise ValueError(f"expected one of {', '.join(CHOICES)} or a number after {kind}:, got {value!r}")
    if share is not None:
        if isinstance(context, (Default, Answer, Hint)):
            raise ValueError(f"{kind} is shown whole, so it takes no share after @, got {value!r}")
        try:
            context = dataclasses.replace(context, share=float(share))
        except ValueError:
            raise ValueError(f"expected a share above 0 and at most 1 after @, got {value!r}") from None
    return context


def configured(context: str, on_unique_correct: str, hides_own: bool = False) -> Context:
    """The context that ``teacher.context`` and ``teacher.on_unique_correct`` name; the config's check knows the values.

    Args:
        hides_own: see ``FromData``; True for a method without dense terms.

    Raises:
        ValueError: for a text that names none; one clause.
    """
    named = context_of(context)
    if isinstance(named, FromData):
        return dataclasses.replace(named, hides_own=hides_own)
    if isinstance(named, Sibling):
        return dataclasses.replace(named, alone=on_unique_correct)
    raise ValueError(f"expected one of {', '.join(CONFIGURED)}, got {context!r}")


def from_data(context: Context) -> FromData | None:
    """The part of a context that takes its text from the data: the context itself, or what an only correct rollout is shown."""
    if isinstance(context, Sibling) and context.correct and context.alone == "reference":
        return Reference()
    return context if isinstance(context, FromData) else None
