"""Information asymmetry by context: the gap D = log P_S - log P_T (arXiv 2605.10781) of the same rollouts under several teacher
contexts, how alike these gaps are, and which kinds of tokens carry them.

The model is its own teacher, at the weights of the checkpoint. No rollout is shown its own text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlrt.methods.contexts import Context, configured
from rlrt.model.forward import Row, score
from rlrt.model.policy import Policy
from rlrt.model.prompting import PromptBuilder
from rlrt.training.batch import student_rows, teacher_rows
from rlrt.types import Rollout

CONTEXTS = (
    "sibling",
    "sibling:least_like_mine",
    "wrong_sibling",
    "reference",
    "reference@0.5",
    "reference_alone",
    "answer",
    "hint",
)
"""The contexts that are compared where nobody names others; those for which no rollout has a text are left out."""
CLASSES = ("number", "operator", "connective", "special", "other")
NUMBER = re.compile(r"[\d.,]*\d[\d.,]*")
OPERATOR = re.compile(r"[-+*/=<>^%!|~×÷·±≤≥≠≈→−]+|\\(?:frac|times|cdot|div|sqrt|pm|leq?|geq?|neq?|approx|equiv|to)")
CONNECTIVE = re.compile(
    r"[,;:.?\n]+|actually|also|alternatively|and|because|but|check|finally|first|hence|hmm|however|if|instead|let|maybe|next|"
    r"now|or|perhaps|since|so|then|therefore|thus|wait|when|which|while"
)
"""Words and signs that join or turn the steps of a solution."""


@dataclass(frozen=True)
class Gaps:
    """The gaps of some rollouts' tokens under several contexts.

    Attributes:
        contexts: as they are written, K of them.
        gap_KN: D in nats; NaN where the rollout has no teacher in that context.
        class_N: index into ``CLASSES``.
        correct_N: bool; whether the token's rollout is correct.
    """

    contexts: list[str]
    gap_KN: Tensor
    class_N: Tensor
    correct_N: Tensor


@dataclass(frozen=True)
class View:
    """What a teacher may be shown, and how long it may be: what ``teacher_rows`` reads."""

    contexts: Sequence[Context]
    builder: PromptBuilder
    max_context_tokens: int
    context_length: int
    too_long: str = "no_teacher"


def class_of(piece: str, special: bool) -> str:
    """One of ``CLASSES`` for a token.

    Args:
        piece: the token's text by itself.
        special: whether it ends a response or was added to the vocabulary.
    """
    text = (piece.strip() or piece.strip(" \t")).lower()  # a token of line breaks alone keeps them
    if special:
        return "special"
    if NUMBER.fullmatch(text):
        return "number"
    if OPERATOR.fullmatch(text):
        return "operator"
    return "connective" if CONNECTIVE.fullmatch(text) else "other"


def gaps(policy: Policy, view: View, names: Sequence[str], rollouts: Sequence[Rollout], token_budget: int) -> Gaps:
    """D of every token of the rollouts that were judged, under each context.

    Args:
        view: its contexts are those that ``names`` names.
        token_budget: of one forward pass.
    """
    known = [rollout for rollout in rollouts if not rollout.grade.error]
    width = max(len(rollout.generation.token_ids) for rollout in known)
    everyone_B = torch.ones(len(known), dtype=torch.bool)
    views, _, _ = teacher_rows(view, known, everyone_B)
    student = student_rows(known)
    mask_BT = torch.arange(width)[None] < torch.tensor([len(row.response_ids) for row in student])[:, None]

    def logp_of(rows: Sequence[Row]) -> Tensor:
        return score(policy.model, rows, policy.temperature, token_budget, width)[0]

    student_BT, kept, values = logp_of(student), [], []
    for name, rows in zip(names, views, strict=True):
        has_B = torch.tensor([row is not None for row in rows])
        if bool(has_B.any()):
            gap_BT = torch.full_like(student_BT, torch.nan)
            gap_BT[has_B] = student_BT[has_B] - logp_of([row for row in rows if row is not None])
            kept.append(name)
            values.append(gap_BT[mask_BT])
    special = set(policy.special_ids)
    ids = [i for row in student for i in row.response_ids]
    kinds = {i: CLASSES.index(class_of(policy.spell([i])[0], i in special)) for i in set(ids)}
    correct_B1 = torch.tensor([rollout.grade.correct for rollout in known])[:, None]
    return Gaps(
        kept,
        torch.stack(values) if values else torch.zeros(0, len(ids)),
        torch.tensor([kinds[i] for i in ids]),
        correct_B1.expand_as(mask_BT)[mask_BT],
    )


def contexts_of(names: Sequence[str]) -> list[Context]:
    """The contexts of written names.

    Raises:
        ValueError: for a name of none; one clause.
    """
    return [configured(name, "plain", hides_own=True) for name in names]


def verdicts(found: Gaps) -> list[tuple[str, Tensor]]:
    """The tokens of correct and of wrong rollouts, as bool_N by name."""
    return [("correct", found.correct_N), ("wrong", ~found.correct_N)]


def carriers(found: Gaps) -> list[list[Any]]:
    """Which kinds of tokens carry D: rows of verdict, context, class, tokens, share of the tokens, share of the sum of |D|, and
    means of D and |D| (nats). The class ``all`` is every token. A class without tokens has no row, a sum of 0 no share."""
    rows: list[list[Any]] = []
    for verdict, of_verdict_N in verdicts(found):
        for name, gap_N in zip(found.contexts, found.gap_KN.double(), strict=True):
            where_N = of_verdict_N & ~gap_N.isnan()
            count, total = int(where_N.sum()), float(gap_N[where_N].abs().sum())
            for index, kind in [(None, "all"), *enumerate(CLASSES)]:
                own_N = gap_N[where_N if index is None else where_N & (found.class_N == index)]
                if len(own_N):
                    size = float(own_N.abs().sum())
                    share = size / total if total else ""
                    shares = [len(own_N), len(own_N) / count, share]
                    rows.append([verdict, name, kind, *shares, float(own_N.mean()), size / len(own_N)])
    return rows


def correlations(found: Gaps) -> list[list[Any]]:
    """Pearson's correlation of D under every two contexts, over the tokens that have both: rows of verdict, context, other
    context, tokens, correlation. A gap that does not vary has no correlation, so no row."""
    rows: list[list[Any]] = []
    for verdict, of_verdict_N in verdicts(found):
        for first, second in itertools.combinations(range(len(found.contexts)), 2):
            pair_2N = found.gap_KN[[first, second]].double()
            pair_2N = pair_2N[:, of_verdict_N & ~pair_2N.isnan().any(0)]
            tokens = pair_2N.shape[1]
            if tokens > 1 and bool((pair_2N.std(1) > 0).all()):
                correlation = float(pair_2N.corrcoef()[0, 1])
                rows.append([verdict, found.contexts[first], found.contexts[second], tokens, correlation])
    return rows
