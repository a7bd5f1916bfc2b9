"""The rollouts of a step or of a mini-batch as the trainer runs them: the student's rows, the teacher's, and their signals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlrt.methods.contexts import Context
from rlrt.methods.signals import Signals
from rlrt.model.forward import Row, pad
from rlrt.model.prompting import PromptBuilder
from rlrt.training.learner import Learner
from rlrt.types import Rollout


@dataclass(frozen=True)
class Batch:
    """B rollouts.

    Attributes:
        rows: the student's sequence of each.
        teacher_rows: for each teacher context the teacher's sequence of each rollout; None: this rollout has no teacher.
        signals: what a method may read of them.
    """

    rows: list[Row]
    teacher_rows: list[list[Row | None]]
    signals: Signals

    def part(self, index: Tensor) -> Batch:
        """The rollouts ``index`` (long), in that order."""
        chosen = index.tolist()
        teacher_rows = [[rows[i] for i in chosen] for rows in self.teacher_rows]
        return Batch([self.rows[i] for i in chosen], teacher_rows, self.signals.rows(index))

    def has_teacher(self, context: int = 0) -> Tensor:
        """Bool_B: the rollouts that have a teacher in a context."""
        return torch.tensor([row is not None for row in self.teacher_rows[context]])

    def has_dense_teacher(self, places: Sequence[int]) -> Tensor:
        """Bool_B: the rollouts that have a teacher in every context that dense terms read; without such terms in the first."""
        return torch.stack([self.has_teacher(k) for k in places or [0]]).all(0)

    def has_any_teacher(self) -> Tensor:
        """Bool_B: the rollouts that have a teacher in some context."""
        return torch.stack([self.has_teacher(k) for k in range(len(self.teacher_rows))]).any(0)


def signals_of(rollouts: Sequence[Rollout], step: int, special_ids: Sequence[int], exact: bool = True) -> Signals:
    """Signals of rollouts before anything is scored: log-probabilities and entropies are still zero.

    Args:
        exact: whether the rollouts were sampled by the weights that are trained now, by the trainer's arithmetic.
    """
    width = max(len(r.generation.token_ids) for r in rollouts)
    token_BT = pad([torch.tensor(r.generation.token_ids) for r in rollouts], width)
    length_B = torch.tensor([len(r.generation.token_ids) for r in rollouts])
    mask_BT = torch.arange(width)[None] < length_B[:, None]
    zeros_BT = torch.zeros(len(rollouts), width)
    return Signals(
        step=step,
        group_B=torch.tensor([r.group for r in rollouts]),
        reward_B=torch.tensor([r.grade.reward for r in rollouts]),
        correct_B=torch.tensor([r.grade.correct for r in rollouts]),
        seed_B=torch.tensor([r.seed for r in rollouts]),
        token_BT=token_BT,
        mask_BT=mask_BT,
        special_BT=torch.isin(token_BT, torch.tensor(list(special_ids), dtype=torch.long)) & mask_BT,
        logp_BT=zeros_BT,
        entropy_BT=zeros_BT.clone(),
        scored_B=torch.zeros(len(rollouts), dtype=torch.bool),
        sampler_logp_BT=None if exact else pad([r.generation.logp_T for r in rollouts], width),
        text_B=[r.text for r in rollouts],
    )


def student_rows(rollouts: Sequence[Rollout]) -> list[Row]:
    """The sequences that the student is scored and trained on."""
    return [Row(r.prompt_ids, r.generation.token_ids) for r in rollouts]


def batch_of(
    learner: Learner, rollouts: Sequence[Rollout], signals: Signals, wanted_B: Tensor
) -> tuple[Batch, list[str | None], dict[str, float]]:
    """A step's rollouts as a batch.

    Args:
        wanted_B: bool; the rollouts that the method wants a teacher for.

    Returns:
        the batch; the text that the first context's teacher is shown for each rollout (None: no teacher); shares to log: of
        rollouts with and without a teacher in the first context; of the wanted pairs of rollout and context those whose text
        was too long, and those whose text would have been the rollout's own.
    """
    rows, texts, too_long = teacher_rows(learner, rollouts, wanted_B)
    batch = Batch(student_rows(rollouts), rows, signals)
    has_B = batch.has_teacher()
    shown = [text if has else None for text, has in zip(texts[0], has_B.tolist(), strict=True)]
    wanted, has = int(wanted_B.sum()), int(has_B.sum())
    own = sum(int((torch.tensor(context.own(rollouts)) & wanted_B).sum()) for context in learner.contexts)
    pairs = max(1, wanted * len(rows))
    return (
        batch,
        shown,
        {
            "teacher/share": has / len(rollouts),
            "teacher/wanted_without_share": (wanted - has) / len(rollouts),
            "teacher/too_long_share": too_long / pairs,
            "teacher/own_text_share": own / pairs,
        },
    )


class Viewer(Protocol):
    """What decides on the rows of a teacher: a ``Learner``, or an analysis."""

    @property
    def contexts(self) -> Sequence[Context]:
        """What the teacher is shown, context by context."""

    @property
    def builder(self) -> PromptBuilder:
        """Builds the teacher's prompts."""

    @property
    def max_context_tokens(self) -> int:
        """The longest prompt that the teacher may have, tokens."""

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its response may have together."""

    @property
    def too_long(self) -> str:
        """What a rollout gets whose teacher's prompt does not fit (``teacher.too_long``)."""


def teacher_rows(
    viewer: Viewer, rollouts: Sequence[Rollout], wanted_B: Tensor
) -> tuple[list[list[Row | None]], list[list[str | None]], int]:
    """The teacher's sequence of every rollout that wants a teacher and can have one, for each context.

    A teacher's prompt has room if it has at most ``max_context_tokens``, and leaves the model's context to the response that is
    there.

    Returns:
        the rows, context by context; the text that each row shows; how many were left out because their prompt is too long.
    """
    written: dict[tuple[object, ...], list[int]] = {}  # the rollouts of a group share a prompt
    rows: list[list[Row | None]] = []
    texts = [context.shown(rollouts) for context in viewer.contexts]
    too_long = 0
    for k, context in enumerate(viewer.contexts):
        rows.append([])
        for i, (rollout, wanted) in enumerate(zip(rollouts, wanted_B.tolist(), strict=True)):
            response_ids, text = rollout.generation.token_ids, texts[k][i]
            room = min(viewer.max_context_tokens, viewer.context_length - len(response_ids))
            row = None
            if wanted and text is not None:
                question = context.question(rollout.prompt)
                elsewhere = [shown[i] for j, shown in enumerate(texts) if j != k]
                for candidate in candidates(viewer, context, rollouts, i, text, elsewhere):
                    # an empty text is shown with the student's own question, whatever the context's is
                    asked = question if candidate.strip() else rollout.prompt.text
                    shown = (asked, rollout.prompt.instruction, rollout.prompt.examples, candidate)
                    if shown not in written:
                        written[shown] = viewer.builder.teacher(rollout.prompt, candidate, question)
                    if len(written[shown]) <= room:
                        row, texts[k][i] = Row(written[shown], response_ids), candidate
                        break
                too_long += row is None
            rows[-1].append(row)
    return rows, texts, too_long


def candidates(
    viewer: Viewer, context: Context, rollouts: Sequence[Rollout], i: int, text: str, elsewhere: Sequence[str | None]
) -> Iterator[str]:
    """The texts that rollout ``i`` may be shown if they fit: the one that the context names, then shorter ones, where the
    config says so.

    Args:
        elsewhere: what the other contexts show the rollout. None of it stands in here: in the mean over RLCSD's wrong siblings
            it would count twice.
    """
    yield text
    if viewer.too_long == "shorter_sibling":
        yield from (other for other in context.shorter(rollouts, i) if other not in elsewhere)
