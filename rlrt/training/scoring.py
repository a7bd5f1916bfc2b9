"""When the log-probabilities of a step are computed, and by which pass: ``score_step``.

The credit reads the student's log-probabilities and the teacher's, the KL penalty those of the step-0 model. The student's
come from one of two passes:

- *the update's own forward pass*, run before the credit and kept for the loss (``update_pass``): where a step is one
  optimiser step of one micro-batch on one rank;
- *a scoring pass* otherwise, for the rollouts whose log-probabilities something reads (``Plan.student_B``). Under
  ``train.old_logp=sampler`` the policy ratio is none of those that read them.

For the credit the teacher is scored never, once, or live (``Case``). Dense terms of the loss run it again in each
mini-batch, for its whole distributions (``rlrt.training.passes``), and before that where they weigh tokens by it
(``dense_teacher``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from rlrt.methods.signals import Credited, Signals, TeacherSignal
from rlrt.methods.statistic import Statistic
from rlrt.model.forward import Row, micro_batches, pad
from rlrt.model.forward import score as scored
from rlrt.training import importance
from rlrt.training.batch import Batch
from rlrt.training.learner import Learner
from rlrt.training.passes import Pass, forward_pass
from rlrt.training.timing import clock
from rlrt.types import Rollout


class Case(Enum):
    """When the teacher is scored for the credit."""

    NEVER = "the credit reads no teacher, or no rollout has one"
    ONCE = "before the first optimiser step, at rollout-time weights on both sides of D"
    LIVE = "before each mini-batch, at the weights of that moment (teacher.weights=live and several mini-batches)"


@dataclass(frozen=True)
class Plan:
    """The scoring that a step does before its update.

    Attributes:
        teacher: when the teacher is.
        student_B: bool; the rollouts whose student log-probabilities at rollout-time weights something reads.
    """

    teacher: Case
    student_B: Tensor


@dataclass(frozen=True)
class Scored:
    """The outcome of scoring a step, besides the signals.

    Attributes:
        ready: the update's own forward pass, where it has been run.
        live: whether each mini-batch is credited at the weights of its moment.
    """

    ready: Pass | None
    live: bool


def score_step(learner: Learner, batch: Batch, advantage_B: Tensor, seconds: dict[str, float]) -> Scored:
    """Fill the signals of a step with everything that is scored before its update.

    Args:
        advantage_B: rollouts with zero advantage are run only if the credit or a term of the loss reads them.
        seconds: gets the time of scoring, and that of the update's own pass.
    """
    plan = plan_of(learner, batch)
    with clock(seconds, "time/score_s"):
        score_reference(learner, batch)
    with clock(seconds, "time/update_s"):
        ready = update_pass(learner, batch, plan, advantage_B)
    with clock(seconds, "time/score_s"):
        score_before_update(learner, batch, plan)
    return Scored(ready, plan.teacher is Case.LIVE)


def take_old_logp(learner: Learner, rollouts: Sequence[Rollout], signals: Signals) -> None:
    """Let the policy ratio divide by the sampler's log-probabilities, under ``train.old_logp=sampler``."""
    if learner.train.old_logp == "sampler":
        logp_BT = pad([r.generation.logp_T for r in rollouts], signals.mask_BT.shape[1])
        # a rollout with a token that is not finite weighs nothing
        signals.old_logp_BT = torch.where(logp_BT.isfinite(), logp_BT, 0.0)


def plan_of(learner: Learner, batch: Batch) -> Plan:
    """Decide what a step must score.

    Every student is scored if the credit reads entropies or statistics, and for the policy ratio if there are several
    mini-batches or the engine is not exact, unless the ratio divides by the sampler's log-probabilities. Otherwise only the
    students of rollouts with a teacher are: both sides of D are always the trainer's.
    """
    credit, several, signals = learner.method.credit, learner.train.minibatches > 1, batch.signals
    has_B = batch.has_any_teacher()
    if not credit.needs_teacher or not bool(has_B.any()):
        case = Case.NEVER
    else:
        case = Case.LIVE if several and learner.teacher.weights == "live" else Case.ONCE
    for_credit = bool(credit.needs_entropy or credit.statistics())
    if signals.old_logp_BT is None:
        everything = for_credit or several or signals.sampler_logp_BT is not None
    else:
        everything = for_credit and case is not Case.LIVE  # a live credit is scored in its mini-batch
    student_B = torch.ones_like(has_B) if everything else has_B & (case is Case.ONCE)
    return Plan(case, student_B)


def score_reference(learner: Learner, batch: Batch) -> None:
    """Fill in the step-0 model's log-probabilities, where there is a KL penalty."""
    if learner.reference is not None:
        width = batch.signals.mask_BT.shape[1]
        batch.signals.reference_logp_BT = score_together(learner, [(learner.reference, batch.rows)], width)[0][0]


def update_pass(learner: Learner, batch: Batch, plan: Plan, advantage_B: Tensor) -> Pass | None:
    """Run the update's own forward pass before the credit and fill in the student's side: no second pass is needed.

    Args:
        advantage_B: rollouts with zero advantage are run only if the credit or a term of the loss reads them.

    Returns:
        the pass, with its gradient; None where a step has several optimiser steps, micro-batches or ranks, or where nothing
        reads the student's side.
    """
    signals, method = batch.signals, learner.method
    if not bool(plan.student_B.any()) or learner.train.minibatches > 1 or learner.world.size > 1:
        return None
    read_B = batch.has_any_teacher() | plan.student_B
    run_B = read_B | method.touched_rows(advantage_B[:, None] * signals.mask_BT, read_B, signals)
    if learner.reference is not None:
        run_B = torch.ones_like(run_B)
    index = run_B.nonzero()[:, 0]
    rows = [batch.rows[i] for i in index.tolist()]
    if len(micro_batches(learner.policy.model, rows, learner.train.budget)) != 1:
        return None
    statistics = method.credit.statistics()
    done = forward_pass(learner, batch, index, with_entropy=True, statistics=statistics)
    mask_BT = done.signals.mask_BT
    targets = [signals.logp_BT, signals.entropy_BT, *student_statistics(signals, statistics)]
    for target_BT, value_N in zip(targets, [done.logp_N, done.entropy_N, *done.statistic_N], strict=True):
        assert value_N is not None
        target_BT[index] = torch.zeros(mask_BT.shape).masked_scatter(mask_BT, value_N.detach().cpu())
    signals.scored_B[index] = True
    return done


def score_before_update(learner: Learner, batch: Batch, plan: Plan) -> None:
    """Fill in what the credit still lacks: the student's side of the planned rollouts, and the teacher's where it is scored
    once.

    Where student and teacher are one model, one pass runs both.
    """
    score(learner, batch, plan.student_B & ~batch.signals.scored_B, plan.teacher is Case.ONCE)


def live_credit(learner: Learner, batch: Batch, advantage_B: Tensor) -> tuple[Credited, Signals]:
    """The credit of one mini-batch with both sides of D scored at the weights of this moment, and the signals that it read.

    The old log-probabilities of the policy ratio, in ``batch.signals``, stay those at rollout time.
    """
    everyone = torch.arange(len(batch.rows))
    now = batch.part(everyone)  # a copy
    score(learner, now, torch.ones(len(everyone), dtype=torch.bool), with_teacher=True)
    return learner.method.credit(advantage_B, now.signals), now.signals


def dense_teacher(learner: Learner, batch: Batch) -> TeacherSignal | None:
    """The teacher's view of a mini-batch for dense terms that weigh their tokens by it; None where no such term has a
    rollout."""
    method, has_B = learner.method, batch.has_dense_teacher(learner.method.dense_places())
    terms = [term for term in method.auxiliary if term.needs_teacher and term.weighs_tokens]
    if not any(bool(method.taught_rows(term, has_B, batch.signals).any()) for term in terms):
        return None
    request = (learner.teacher.model, [row for row in batch.teacher_rows[0] if row is not None])
    (values,) = score_together(learner, [request], batch.signals.mask_BT.shape[1])
    return teacher_signal(batch.signals, batch.teacher_rows[0], values, ())


def score(learner: Learner, batch: Batch, student_B: Tensor, with_teacher: bool) -> None:
    """Score some students, and every teacher where ``with_teacher``, by the trainer's own forward path, into the batch's
    signals."""
    signals, statistics = batch.signals, learner.method.credit.statistics()
    index = student_B.nonzero()[:, 0]
    views = batch.teacher_rows[: learner.method.credit_contexts] if with_teacher else []
    requests: list[tuple[Any, Sequence[Row]]] = [(learner.policy.model, [batch.rows[i] for i in index.tolist()])]
    requests += [(learner.teacher.model, [row for row in view if row is not None]) for view in views]
    students, *teachers = score_together(learner, requests, signals.mask_BT.shape[1], statistics)
    targets = [signals.logp_BT, signals.entropy_BT, *student_statistics(signals, statistics)]
    if len(index):
        for target_BT, value_BT in zip(targets, students, strict=True):
            target_BT[index] = value_BT
        signals.scored_B[index] = True
    signals.teachers = [
        teacher_signal(signals, view, values, statistics) for view, values in zip(views, teachers, strict=True)
    ]


def score_together(
    learner: Learner,
    requests: Sequence[tuple[Any, Sequence[Row]]],
    width: int,
    statistics: Sequence[Statistic] = (),
) -> list[list[Tensor]]:
    """Score several lists of rows; requests to one model share one forward pass.

    Args:
        requests: (model, rows).
        width: T of the results.

    Returns:
        for each request logp_BT, entropy_BT and one value_BT for each statistic.
    """
    results = [[torch.zeros(0, width) for _ in range(2 + len(statistics))] for _ in requests]
    for model in {id(m): m for m, _ in requests}.values():
        asking = [i for i, (m, rows) in enumerate(requests) if m is model and rows]
        if not asking:
            continue
        together = [row for i in asking for row in requests[i][1]]
        policy, train = learner.policy, learner.train
        values = scored(model, together, policy.temperature, train.budget, width, learner.world, statistics)
        start = 0
        for i in asking:
            end = start + len(requests[i][1])
            results[i], start = [value_BT[start:end] for value_BT in values], end
    return results


def student_statistics(signals: Signals, statistics: Sequence[Statistic]) -> list[Tensor]:
    """The tensors that hold the student's statistics, made where they are not there yet."""
    return [signals.statistics.setdefault(one, torch.zeros_like(signals.logp_BT)) for one in statistics]


def teacher_signal(
    signals: Signals, view: Sequence[Row | None], values: Sequence[Tensor], statistics: Sequence[Statistic]
) -> TeacherSignal:
    """The scores of the rollouts that have a teacher, as a signal over all rollouts."""
    has_B = torch.tensor([row is not None for row in view])
    full = [torch.zeros_like(signals.logp_BT) for _ in values]
    for target_BT, value_BT in zip(full, values, strict=True):
        target_BT[has_B] = value_BT
    return TeacherSignal(has_B, full[0], full[1], dict(zip(statistics, full[2:], strict=True)))


def mismatch(learner: Learner, signals: Signals) -> dict[str, float]:
    """Distance between the sampler's and the trainer's probabilities of the tokens, and the effect of the importance weights.

    Empty for an engine that samples by the trainer's own weights, and under ``train.old_logp=sampler``, where the update's own
    passes measure it (``rlrt.training.passes.sampler_distance``).
    """
    if signals.sampler_logp_BT is None or signals.old_logp_BT is not None:
        return {}
    return importance.metrics(learner.importance, signals.logp_BT, signals.sampler_logp_BT, signals.mask_BT)


def take_entropies(rollouts: Sequence[Rollout], signals: Signals) -> None:
    """Put the trainer's exact entropies, where they were computed, in place of those of a sampler that has none."""
    if signals.sampler_logp_BT is None:
        return
    for rollout, entropy_T, known in zip(rollouts, signals.entropy_BT, signals.scored_B.tolist(), strict=True):
        if known:
            rollout.generation.entropy_T = entropy_T[: len(rollout.generation.token_ids)].clone()
