"""Credit and gradient: from graded rollouts to optimiser steps. Knows slots, no method by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlrt.methods.aggregate import kl_penalty, token_weights
from rlrt.methods.grpo import policy_ratio
from rlrt.methods.method import Method
from rlrt.methods.signals import Credited, Distributions, Signals, TeacherSignal
from rlrt.policy import Policy, Row, micro_batches, response_logp, score
from rlrt.prompting import PromptBuilder
from rlrt.rollouts import entropy_mean, student_rows
from rlrt.teacher import Teacher, reference_text, sibling_contexts, sibling_of_kind
from rlrt.timing import clock
from rlrt.types import Rollout


@dataclass
class Learner:
    """Everything an update needs besides the rollouts.

    Attributes:
        policy, method, teacher, builder: the parts.
        reference: the step-0 model for the KL penalty, or None.
        train, teacher_config: the config sections.
        max_new_tokens: of the engine; the constant denominator of Dr.GRPO.
        context_length: tokens that a prompt and its response may have together.
    """

    policy: Policy
    method: Method
    teacher: Teacher
    builder: PromptBuilder
    reference: Any
    train: Any
    teacher_config: Any
    max_new_tokens: int
    context_length: int

    def teacher_views(
        self, rollouts: Sequence[Rollout], wanted_B: Tensor
    ) -> tuple[list[list[Row | None]], dict[str, float]]:
        """For every context that the method reads, the teacher's sequence of every rollout that wants one and can have one;
        and the counts of both, by the first context."""
        views, too_long = [], 0
        limit = min(self.teacher_config.max_context_tokens, self.context_length - self.max_new_tokens)
        for kind in self.method.credit.contexts():
            rows: list[Row | None] = []
            for rollout, text, wanted in zip(rollouts, self.texts(rollouts, kind), wanted_B.tolist(), strict=True):
                row = None
                if wanted and text is not None:
                    prompt_ids = self.builder.teacher(rollout.prompt, text)
                    if len(prompt_ids) <= limit:
                        row = Row(prompt_ids, rollout.generation.token_ids)
                    else:
                        too_long += 1
                rows.append(row)
            views.append(rows)
        wanted, has = int(wanted_B.sum()), sum(r is not None for r in views[0])
        return views, {
            "teacher/share": has / len(rollouts),
            "teacher/wanted_without_share": (wanted - has) / len(rollouts),
            "teacher/too_long_share": too_long / len(rollouts) / len(views),
        }

    def texts(self, rollouts: Sequence[Rollout], kind: str) -> list[str | None]:
        """What the teacher is shown for each rollout in one of a credit's contexts."""
        if kind != "default":
            verdict, _, number = kind.partition(":")
            return sibling_of_kind(rollouts, verdict == "correct", int(number or 0))
        if self.teacher_config.context == "sibling":
            return sibling_contexts(rollouts, self.teacher_config.on_unique_correct)
        return [reference_text(r.prompt, self.teacher_config.context) for r in rollouts]

    def score_student(self, signals: Signals, rows: Sequence[Row], wanted_B: Tensor) -> None:
        """Fill in log-probabilities and entropies of the wanted rollouts, by the trainer's own forward path."""
        index = wanted_B.nonzero()[:, 0]
        if len(index) == 0:
            return
        chosen = [rows[i] for i in index.tolist()]
        width = signals.mask_BT.shape[1]
        logp, entropy = score(self.policy.model, chosen, self.policy.temperature, self.train.token_budget, width)
        signals.logp_BT[index], signals.entropy_BT[index] = logp, entropy
        signals.scored_B[index] = True

    def score_teacher(self, signals: Signals, rows: Sequence[Row | None]) -> TeacherSignal:
        """The teacher's log-probabilities and entropies of the rollouts that have a context."""
        has_B = torch.tensor([row is not None for row in rows])
        logp_BT, entropy_BT = torch.zeros_like(signals.logp_BT), torch.zeros_like(signals.logp_BT)
        chosen = [row for row in rows if row is not None]
        if chosen:
            width = signals.mask_BT.shape[1]
            logp, entropy = score(self.teacher.model, chosen, self.policy.temperature, self.train.token_budget, width)
            logp_BT[has_B], entropy_BT[has_B] = logp, entropy
        return TeacherSignal(has_B, logp_BT, entropy_BT)

    def score_reference(self, signals: Signals, rows: Sequence[Row]) -> Tensor:
        """Log-probabilities under the step-0 policy."""
        width = signals.mask_BT.shape[1]
        return score(self.reference, rows, self.policy.temperature, self.train.token_budget, width)[0]


@dataclass
class StepResult:
    """What an update leaves to record: metrics, and for the samples per-token values and what the teacher was shown."""

    metrics: dict[str, float]
    tokens: dict[str, Tensor] = field(default_factory=dict)
    shown: list[str | None] = field(default_factory=list)


def learn(learner: Learner, rollouts: Sequence[Rollout], signals: Signals, lr: float) -> StepResult:
    """All optimiser steps of one step of the loop.

    Log-probabilities at rollout-time weights are computed once; with ``teacher.weights=live`` both sides of the gap
    are computed again for each mini-batch (METHODS, common ground).
    """
    method, train = learner.method, learner.train
    seconds: dict[str, float] = {}
    learner.teacher.begin_step(signals.step)
    rows = student_rows(rollouts)
    advantage_B = method.advantage(signals)
    views, metrics = learner.teacher_views(rollouts, method.teacher_rows(advantage_B, signals))
    has_B = torch.tensor([any(view[i] is not None for view in views) for i in range(len(rollouts))])
    gaps = bool(has_B.any()) and method.credit.needs_teacher  # the credit reads the teacher's log-probabilities
    late = gaps and learner.teacher.weights == "live" and train.minibatches > 1
    with clock(seconds, "time/score_s"):
        if train.minibatches > 1 or method.credit.needs_entropy:
            learner.score_student(signals, rows, torch.ones_like(has_B))
        elif gaps:
            learner.score_student(signals, rows, has_B)
        if learner.reference is not None:
            signals.reference_logp_BT = learner.score_reference(signals, rows)
    with clock(seconds, "time/teacher_s"):
        if gaps and not late:
            signals.teachers = [learner.score_teacher(signals, view) for view in views]
    credited = None if late else method.credit(advantage_B, signals)
    advantage_BT = torch.zeros_like(signals.logp_BT)
    totals: dict[str, list[float]] = {}
    with clock(seconds, "time/update_s"):
        for index in minibatches(signals.group_B, train.minibatches):
            part_rows = [rows[i] for i in index.tolist()]
            part_views = [[view[i] for i in index.tolist()] for view in views]
            if credited is None:
                part_credit = credit_now(learner, signals, index, part_rows, part_views, advantage_B[index])
            else:
                part_credit = credited.rows(index)
            advantage_BT[index] = part_credit.advantage_BT
            numbers = minibatch_step(learner, part_rows, part_views[0], signals.rows(index), part_credit, lr)
            for name, value in (numbers | part_credit.metrics).items():
                totals.setdefault(name, []).append(value)
    for slot in method.slots().values():
        metrics |= slot.metrics()
    for term in method.auxiliary:
        term.observe(entropy_mean(rollouts))
    metrics |= {name: sum(values) / len(values) for name, values in totals.items()}
    texts = learner.texts(rollouts, method.credit.contexts()[0])
    shown = [text if row is not None else None for text, row in zip(texts, views[0], strict=True)]
    return StepResult(metrics | seconds, token_values(signals, advantage_B, advantage_BT), shown)


def credit_now(
    learner: Learner,
    signals: Signals,
    index: Tensor,
    rows: Sequence[Row],
    views: Sequence[Sequence[Row | None]],
    advantage_B: Tensor,
) -> Credited:
    """The credit of one mini-batch with both sides of the gap scored at the weights of now (``teacher.weights=live``).

    The old log-probabilities of the policy ratio, in ``signals``, stay those at rollout time.
    """
    now = signals.rows(index)
    learner.score_student(now, rows, torch.ones(len(rows), dtype=torch.bool))
    now.teachers = [learner.score_teacher(now, view) for view in views]
    return learner.method.credit(advantage_B, now)


def token_values(signals: Signals, advantage_B: Tensor, advantage_BT: Tensor) -> dict[str, Tensor]:
    """Per-token values worth storing with a rollout; weight: what the credit made of its advantage, NaN where that is 0."""
    whole_B1 = advantage_B[:, None]
    values = {"advantage": advantage_BT, "weight": torch.where(whole_B1 != 0, advantage_BT / whole_B1, torch.nan)}
    if bool(signals.scored_B.any()):
        values["logp"] = signals.logp_BT
    if signals.teachers:
        has = signals.teachers[0].has_B[:, None]
        values["gap"] = torch.where(has, signals.logp_BT - signals.teachers[0].logp_BT, torch.nan)
    return values


def minibatches(group_B: Tensor, count: int) -> list[Tensor]:
    """Indices of the rollouts of each mini-batch: whole groups, as equal in number as can be."""
    groups = group_B.unique()
    return [torch.isin(group_B, part).nonzero()[:, 0] for part in groups.tensor_split(count)]


def minibatch_step(
    learner: Learner,
    rows: Sequence[Row],
    contexts: Sequence[Row | None],
    signals: Signals,
    credited: Credited,
    lr: float,
) -> dict[str, float]:
    """Forward and backward over one mini-batch by micro-batches, then one optimiser step.

    Denominators count the tokens of the whole mini-batch, skipped rollouts included, so the gradient does not depend
    on how it is cut into micro-batches.
    """
    method, train = learner.method, learner.train
    has_B = torch.tensor([c is not None for c in contexts])
    weight_BT = token_weights(
        signals.mask_BT, train.aggregation, learner.max_new_tokens, credited.select_BT, credited.select_weight
    )
    dense_weight_BT = dense_weights(learner, contexts, signals, has_B)
    left_B1 = method.left_to_terms(has_B)[:, None]
    advantage_BT = torch.where(left_B1, torch.zeros_like(credited.advantage_BT), credited.advantage_BT)
    touched_B = method.touched_rows(advantage_BT, has_B)
    if learner.reference is not None:
        touched_B = torch.ones_like(touched_B)
    index = touched_B.nonzero()[:, 0].tolist()
    tokens = int(signals.mask_BT[touched_B].sum())
    sums: dict[str, float] = {"policy/loss": 0.0}
    for micro in micro_batches([len(rows[i]) for i in index], train.token_budget):
        chosen = torch.tensor([index[j] for j in micro])
        loss, numbers, counts = micro_loss(
            learner,
            [rows[i] for i in chosen.tolist()],
            [contexts[i] for i in chosen.tolist()],
            signals.rows(chosen),
            advantage_BT[chosen],
            weight_BT[chosen],
            dense_weight_BT[chosen],
        )
        loss.backward()
        sums["policy/loss"] += float(loss.detach())
        for name, value in numbers.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + float(value) / tokens
    sums["policy/skipped_share"] = 1.0 - len(index) / len(rows)
    sums["policy/grad_norm"] = learner.policy.step(lr, train.max_grad_norm) if index else 0.0
    if index and math.isfinite(sums["policy/grad_norm"]):
        learner.teacher.follow()
    return sums


def dense_weights(learner: Learner, contexts: Sequence[Row | None], signals: Signals, has_B: Tensor) -> Tensor:
    """Weights of the tokens of rollouts with a teacher in the dense terms; they sum to 1 unless a term shares the policy
    loss's denominator."""
    mask_BT = signals.mask_BT & has_B[:, None]
    term = next((t for t in learner.method.auxiliary if t.needs_teacher), None)
    if term is None or not bool(mask_BT.any()):
        return torch.zeros_like(signals.logp_BT, dtype=torch.float64)
    counted_BT = signals.mask_BT if term.shared_denominator else mask_BT
    weight_BT = mask_BT / counted_BT.sum().double()
    if not term.weighs_tokens:
        return weight_BT
    return weight_BT * term.token_weights(learner.score_teacher(signals, contexts), mask_BT)


def micro_loss(
    learner: Learner,
    rows: Sequence[Row],
    contexts: Sequence[Row | None],
    signals: Signals,
    advantage_BT: Tensor,
    weight_BT: Tensor,
    dense_weight_BT: Tensor,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """All loss terms over one micro-batch.

    Returns:
        the weighted sum with its gradient; what each term adds to the loss; and sums over tokens that, divided by the
        mini-batch's tokens, are shares and means to log.
    """
    method, temperature, device = learner.method, learner.policy.temperature, learner.policy.device
    mask_BT, advantage_BT = signals.mask_BT.to(device), advantage_BT.to(device)
    logp_NV = response_logp(learner.policy.model, rows, temperature)
    token_N = signals.token_BT.to(device)[mask_BT]
    logp_N = logp_NV.gather(-1, token_N[:, None])[:, 0]
    logp_BT = torch.zeros(mask_BT.shape, device=device).masked_scatter(mask_BT, logp_N)
    scored_B1 = signals.scored_B.to(device)[:, None]
    logp_old_BT = torch.where(scored_B1 & (learner.train.minibatches > 1), signals.logp_BT.to(device), logp_BT.detach())
    weight_N = weight_BT.to(device)[mask_BT].float()
    ratio_N = policy_ratio(logp_BT, logp_old_BT).detach()[mask_BT]
    total = torch.zeros((), device=device)
    numbers: dict[str, Tensor] = {}
    counts = {"policy/log_ratio_abs_mean": ratio_N.log().abs().sum()}
    if method.policy_loss is not None:
        loss_BT = method.policy_loss(logp_BT, logp_old_BT, advantage_BT, mask_BT)
        total = total + (loss_BT[mask_BT] * weight_N).sum()
        counts["policy/clipped_share"] = method.policy_loss.clipped(logp_BT, logp_old_BT, advantage_BT, mask_BT)[
            mask_BT
        ].sum()
    for term in method.auxiliary:
        if term.needs_teacher:
            term_loss = dense_term(learner, term, contexts, logp_NV, ratio_N, mask_BT, dense_weight_BT)
        else:
            term_loss = (term(Distributions(logp_NV, None, ratio_N)) * weight_N).sum()
        numbers[f"policy/{type(term).__name__.lower()}"] = term_loss.detach()
        total = total + term_loss
    if learner.reference is not None and signals.reference_logp_BT is not None:
        kl_N = kl_penalty(logp_N, signals.reference_logp_BT.to(device)[mask_BT], learner.train.kl_estimator)
        total = total + learner.train.kl_coef * (kl_N * weight_N).sum()
        counts["policy/kl_reference"] = kl_N.detach().sum()
    return total, numbers, counts


def dense_term(
    learner: Learner,
    term: Any,
    contexts: Sequence[Row | None],
    logp_NV: Tensor,
    ratio_N: Tensor,
    mask_BT: Tensor,
    dense_weight_BT: Tensor,
) -> Tensor:
    """A loss on the distributions of student and teacher, over the tokens of rollouts that have a teacher."""
    has_B = torch.tensor([c is not None for c in contexts], device=mask_BT.device)
    where_N = has_B[:, None].expand_as(mask_BT)[mask_BT]
    if not bool(where_N.any()):
        return torch.zeros((), device=mask_BT.device)
    with torch.no_grad():
        teacher_NV = response_logp(
            learner.teacher.model, [c for c in contexts if c is not None], learner.policy.temperature
        )
    loss_N = term(Distributions(logp_NV[where_N], teacher_NV, ratio_N[where_N]))
    return (loss_N * dense_weight_BT.to(mask_BT.device)[mask_BT][where_N].float()).sum()
