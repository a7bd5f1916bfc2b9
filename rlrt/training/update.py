"""Credit and gradient: from graded rollouts to optimiser steps. Knows slots, no method by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlrt.methods.signals import Credited, Signals
from rlrt.model.forward import Row, micro_batches
from rlrt.sampling.draw import entropy_mean
from rlrt.training.learner import Learner
from rlrt.training.loss import Pass, forward_pass, minibatch_step
from rlrt.training.signals import student_rows
from rlrt.training.timing import clock
from rlrt.types import Rollout


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
    everyone = train.minibatches > 1 or method.credit.needs_entropy or signals.sampler_logp_BT is not None
    wanted_B = torch.ones_like(has_B) if everyone else has_B & gaps
    ready = None
    with clock(seconds, "time/update_s"):
        if bool(wanted_B.any()):
            ready = pass_before_credit(learner, rows, views[0], signals, advantage_B, has_B | wanted_B)
    with clock(seconds, "time/score_s"):
        unknown_B = wanted_B & ~signals.scored_B
        learner.score(signals, rows, unknown_B, views if gaps and not late else [])
        if learner.reference is not None:
            request = (learner.reference, rows)
            signals.reference_logp_BT = learner.scores([request], signals.mask_BT.shape[1])[0][0]
    if signals.sampler_logp_BT is not None:
        metrics |= mismatch(learner, signals)
        take_entropies(rollouts, signals)
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
            numbers = minibatch_step(learner, part_rows, part_views[0], signals.rows(index), part_credit, lr, ready)
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


def pass_before_credit(
    learner: Learner,
    rows: Sequence[Row],
    contexts: Sequence[Row | None],
    signals: Signals,
    advantage_B: Tensor,
    read_B: Tensor,
) -> Pass | None:
    """The update's own forward pass, run before the credit, which reads its log-probabilities: no second one is needed.

    Only where one optimiser step is made of one micro-batch of one process; else None: the rollouts are scored for the credit.

    Args:
        advantage_B: a rollout without advantage is run where ``read_B`` or a term of the loss touches it.
        read_B: the rollouts whose log-probabilities or teacher the credit reads.
    """
    if learner.train.minibatches > 1 or learner.world.size > 1:
        return None
    method = learner.method
    run_B = read_B | method.touched_rows(advantage_B[:, None] * signals.mask_BT, read_B, signals)
    if learner.reference is not None:
        run_B = torch.ones_like(run_B)
    index = run_B.nonzero()[:, 0]
    chosen = [rows[i] for i in index.tolist()]
    if len(micro_batches(learner.policy.model, chosen, learner.train.token_budget)) != 1:
        return None
    done = forward_pass(learner, rows, contexts, signals, index, with_entropy=True)
    mask_BT = signals.mask_BT[index]
    for target, values in ((signals.logp_BT, done.logp_N), (signals.entropy_BT, done.entropy_N)):
        if values is not None:
            filled = torch.zeros(mask_BT.shape).masked_scatter(mask_BT, values.detach().cpu())
            target[index] = filled
    signals.scored_B[index] = True
    return done


def mismatch(learner: Learner, signals: Signals) -> dict[str, float]:
    """How far the sampler's probabilities of its tokens are from the trainer's, and what truncation of the weights does.

    The weights (``importance``) correct for the sampler's other arithmetic and for older weights alike.
    """
    assert signals.sampler_logp_BT is not None
    mask_BT, clip = signals.mask_BT, learner.importance_clip
    gap_N = (signals.logp_BT - signals.sampler_logp_BT)[mask_BT].double()
    weight_N = gap_N.exp()
    return {
        "sampler/logp_gap_abs_mean": float(gap_N.abs().mean()),
        "sampler/logp_gap_abs_max": float(gap_N.abs().max()),
        "sampler/kl": float((weight_N - 1 - gap_N).mean()),
        "sampler/importance_mean": float(weight_N.mean()),
        "sampler/importance_clipped_share": float((weight_N > clip).double().mean()) if clip is not None else 0.0,
    }


def take_entropies(rollouts: Sequence[Rollout], signals: Signals) -> None:
    """The trainer's exact entropies in place of what a sampler without them gave."""
    for rollout, entropy_T in zip(rollouts, signals.entropy_BT, strict=True):
        rollout.generation.entropy_T = entropy_T[: len(rollout.generation.token_ids)].clone()


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
    learner.score(now, rows, torch.ones(len(rows), dtype=torch.bool), views)
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
