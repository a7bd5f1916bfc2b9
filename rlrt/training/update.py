"""One step's update: advantage, score, credit, mini-batches, record. Knows slots, no method by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlrt.methods.signals import Credited, Signals
from rlrt.sampling.draw import entropy_mean
from rlrt.training import scoring
from rlrt.training.batch import Batch, batch_of
from rlrt.training.learner import Learner
from rlrt.training.loss import minibatch_step
from rlrt.training.passes import Pass
from rlrt.training.timing import clock
from rlrt.types import Rollout


@dataclass
class StepResult:
    """The results of one step's update that are recorded.

    Attributes:
        metrics: numbers to log.
        tokens: per-token values of the rollouts, value_BT by name, for stored samples.
        shown: the text that each rollout's teacher was shown; None: it had no teacher.
    """

    metrics: dict[str, float]
    tokens: dict[str, Tensor] = field(default_factory=dict)
    shown: list[str | None] = field(default_factory=list)


def learn(learner: Learner, rollouts: Sequence[Rollout], signals: Signals, lr: float) -> StepResult:
    """All optimiser steps of one step of the loop, over the rollouts that were judged.

    Where the verifier failed, a rollout is no part of the step: it is in no group's baseline, no denominator and no teacher's
    context. If it failed everywhere there is no update.

    Args:
        signals: of the rollouts, not yet scored; the scores are filled in if all were judged.
    """
    index = torch.tensor([i for i, r in enumerate(rollouts) if not r.grade.error], dtype=torch.long)
    if len(index) == len(rollouts):
        return learn_judged(learner, rollouts, signals, lr)
    if not len(index):
        learner.teacher.begin_step(signals.step)
        return StepResult({}, {}, [None] * len(rollouts))
    result = learn_judged(learner, [rollouts[i] for i in index.tolist()], signals.rows(index), lr)
    return spread(result, index, len(rollouts))


def spread(result: StepResult, index: Tensor, count: int) -> StepResult:
    """What an update of the rollouts ``index`` left, as of all ``count``: the others have no advantage, weight or teacher."""
    tokens = {}
    for name, value_BT in result.tokens.items():
        tokens[name] = value_BT.new_full((count, value_BT.shape[1]), torch.nan if name in ("weight", "gap") else 0.0)
        tokens[name][index] = value_BT
    shown = dict(zip(index.tolist(), result.shown, strict=True))
    return StepResult(result.metrics, tokens, [shown.get(i) for i in range(count)])


def learn_judged(learner: Learner, rollouts: Sequence[Rollout], signals: Signals, lr: float) -> StepResult:
    """All optimiser steps of one step of the loop, over these rollouts."""
    method, seconds = learner.method, dict[str, float]()
    learner.teacher.begin_step(signals.step)
    # 1. advantage: one number a rollout, from the rewards
    advantage_B = method.advantage(signals)
    signals.advantage_B = advantage_B
    batch, shown, metrics = batch_of(learner, rollouts, signals, method.teacher_rows(advantage_B, signals))
    # 2. score: the log-probabilities that the credit and the loss read, into the signals
    scoring.take_old_logp(learner, rollouts, signals)
    scored = scoring.score_step(learner, batch, advantage_B, seconds)
    # 3. credit: one number a token (with a live teacher each mini-batch has its own)
    credited = None if scored.live else method.credit(advantage_B, signals)
    # 4. mini-batches: an optimiser step each
    with clock(seconds, "time/update_s"):
        numbers, values = optimise(learner, batch, advantage_B, credited, lr, scored.ready)
    # 5. record, and let adaptive coefficients follow
    for slot in method.slots().values():
        metrics |= slot.metrics()
    metrics |= scoring.mismatch(learner, signals)
    scoring.take_entropies(rollouts, signals)
    for term in method.auxiliary:
        term.observe(entropy_mean(rollouts))
    return StepResult(metrics | numbers | seconds, values | token_values(signals), shown)


def optimise(
    learner: Learner, batch: Batch, advantage_B: Tensor, credited: Credited | None, lr: float, ready: Pass | None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """One optimiser step for each mini-batch.

    Args:
        credited: the credit of all rollouts; None: each mini-batch is credited at the weights of its moment.
        ready: the only mini-batch's forward pass, where it was run before the credit.

    Returns:
        means over the mini-batches of the numbers to log, and the distance to the sampler in the first that ran anything, which
        no step of this update has moved; per token the advantage that the policy loss used, and the weight:
        the factor by which the credit multiplied the rollout's advantage, NaN where that is 0.
    """
    signals = batch.signals
    credit_BT, used_BT = torch.zeros_like(signals.logp_BT), torch.zeros_like(signals.logp_BT)
    numbers: dict[str, list[float]] = {}
    for index in minibatches(signals.group_B, learner.train.minibatches):
        learner.check_stop(joint=True)
        part = batch.part(index)
        part_advantage_B = advantage_B[index]
        part_credit = scoring.live_credit(learner, part, part_advantage_B) if credited is None else credited.rows(index)
        dense = scoring.dense_teacher(learner, part)
        step_numbers, used = minibatch_step(learner, part, part_credit, lr, dense, ready)
        credit_BT[index], used_BT[index] = part_credit.advantage_BT, used
        for name, value in (step_numbers | part_credit.metrics).items():
            numbers.setdefault(name, []).append(value)
    learner.policy.rest()
    weight_BT = torch.where(advantage_B[:, None] != 0, credit_BT / advantage_B[:, None], torch.nan)
    means = {
        name: values[0] if name.startswith("sampler/") else sum(values) / len(values)
        for name, values in numbers.items()
    }
    return means, {"advantage": used_BT, "weight": weight_BT}


def token_values(signals: Signals) -> dict[str, Tensor]:
    """The student's log-probabilities and the gap D of the first teacher context, where they were scored; NaN: no teacher."""
    values = {}
    if bool(signals.scored_B.any()):
        values["logp"] = signals.logp_BT
    if signals.teachers:
        teacher = signals.teachers[0]
        values["gap"] = torch.where(teacher.has_B[:, None], signals.logp_BT - teacher.logp_BT, torch.nan)
    return values


def minibatches(group_B: Tensor, count: int) -> list[Tensor]:
    """Indices of the rollouts of each mini-batch: whole groups, as equal in number as can be; none is empty."""
    groups = group_B.unique()
    return [torch.isin(group_B, part).nonzero()[:, 0] for part in groups.tensor_split(min(count, len(groups)))]
