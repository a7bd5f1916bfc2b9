"""From credit to gradient: the loss of one mini-batch, micro-batch by micro-batch, and the optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlrt.distributed import sharding
from rlrt.methods.aggregate import kl_penalty, token_weights
from rlrt.methods.grpo import policy_ratio
from rlrt.methods.signals import Credited, Signals, TeacherSignal
from rlrt.training.batch import Batch
from rlrt.training.importance import at_this_moment, ratios, weights
from rlrt.training.learner import Learner
from rlrt.training.passes import Pass, forward_pass, has_old_logp, old_logp, passes, sampler_distance


def minibatch_step(
    learner: Learner,
    batch: Batch,
    credited: Credited,
    lr: float,
    dense: TeacherSignal | None = None,
    ready: Pass | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Forward and backward over one mini-batch by micro-batches, then one optimiser step.

    Denominators count the tokens of the whole mini-batch, skipped rollouts included, so the gradient does not depend
    on how it is cut into micro-batches.

    Args:
        dense: the teacher's view of the mini-batch, for dense terms that weigh their tokens by it.
        ready: the forward pass, where it was run before for the student's side of the credit.

    Returns:
        numbers to log; advantage_BT, the advantage that the policy loss used.
    """
    method, train, signals = learner.method, learner.train, batch.signals
    has_B = batch.has_dense_teacher(method.dense_places())
    weight_BT = token_weights(
        signals.mask_BT, train.aggregation, learner.max_new_tokens, credited.select_BT, credited.select_weight
    )
    importance_BT = importance(learner, signals)
    own = auxiliary_weights(learner, signals, has_B, weight_BT, dense)
    term_weights = [
        own_BT * term.factor(signals.step) * importance_BT for term, own_BT in zip(method.auxiliary, own, strict=True)
    ]
    advantage_BT = policy_loss_advantage(learner, signals, has_B, credited)
    touched_B = method.touched_rows(advantage_BT, has_B, signals) & ((importance_BT != 0) & signals.mask_BT).any(1)
    if learner.reference is not None:
        touched_B = torch.ones_like(touched_B)
    index = touched_B.nonzero()[:, 0]
    tokens = int(signals.mask_BT[touched_B].sum())
    sums: dict[str, float] = {"policy/loss": 0.0}
    assert ready is None or bool(torch.isin(index, ready.index).all()), "the pass before the credit covers the update"
    for chosen, counted, last in passes(learner, batch.rows, index):
        with sharding.gradients_stay(learner.policy.model, hold=not last):
            done = forward_pass(learner, batch, chosen) if ready is None else ready
            loss, numbers, counts = micro_loss(
                learner, done, advantage_BT, weight_BT, term_weights, weight_BT * importance_BT
            )
            # gradients are averaged over the ranks, and the loss is a sum over the rollouts of all ranks
            (loss * (learner.world.size if counted else 0.0)).backward()
        if not counted:
            continue
        sums["policy/loss"] += float(loss.detach())
        for name, value in numbers.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + float(value) / tokens
    sharding.drop_gathered(learner.teacher.model)  # its output layer, where a dense term read it
    sums = learner.world.sum(sums)
    sums["policy/skipped_share"] = 1.0 - len(index) / len(batch.rows)
    sums["policy/grad_norm"] = learner.policy.step(lr, train.max_grad_norm) if len(index) else 0.0
    if len(index) and math.isfinite(sums["policy/grad_norm"]):
        learner.teacher.follow()
    return sums, advantage_BT


def policy_loss_advantage(learner: Learner, signals: Signals, has_B: Tensor, credited: Credited) -> Tensor:
    """advantage_BT of the policy loss: the credit's, 0 on rollouts left to an exclusive term, times the importance weights."""
    left_B1 = learner.method.left_to_terms(has_B, signals)[:, None]
    advantage_BT = torch.where(left_B1, torch.zeros_like(credited.advantage_BT), credited.advantage_BT)
    return advantage_BT * importance(learner, signals)


def importance(learner: Learner, signals: Signals) -> Tensor:
    """Importance weights of the tokens (``rlrt.training.importance``); 1 everywhere for an exact engine.

    pi_old is the trainer's probability at the weights at which this step's updates begin, so the weights correct for the
    sampler's other arithmetic and for its older weights alike. Every term of the loss is multiplied by them: each is an
    expectation over what the policy samples, and the sampler sampled it. Where the policy ratio itself divides by the sampler's
    probabilities (``train.old_logp=sampler``), they are 1, and 0 for a rollout with one that is not finite.
    """
    if signals.sampler_logp_BT is None:
        return torch.ones_like(signals.logp_BT)
    if signals.old_logp_BT is not None:
        known_B1 = ratios(signals.old_logp_BT, signals.sampler_logp_BT, signals.mask_BT).known_B[:, None]
        return known_B1.expand_as(signals.logp_BT).to(signals.logp_BT.dtype)
    return weights(learner.importance, signals.logp_BT, signals.sampler_logp_BT, signals.mask_BT).full()


def auxiliary_weights(
    learner: Learner, signals: Signals, has_B: Tensor, weight_BT: Tensor, dense: TeacherSignal | None
) -> list[Tensor]:
    """weight_BT of every auxiliary term, each by its own rule.

    A term without a teacher has the policy loss's weights. A term with one counts the tokens of its own rollouts that have a
    teacher: their weights sum to 1, or under ``shared_denominator`` to their share of the mini-batch's tokens.

    Args:
        has_B: the rollouts that have a teacher.
        weight_BT: the policy loss's.
        dense: the teacher's view, for terms that declare ``weighs_tokens``.
    """
    weights = list[Tensor]()
    for term in learner.method.auxiliary:
        mask_BT = signals.mask_BT & learner.method.taught_rows(term, has_B, signals)[:, None]
        if not term.needs_teacher:
            weights.append(weight_BT)
        elif not bool(mask_BT.any()):
            weights.append(torch.zeros_like(signals.logp_BT, dtype=torch.float64))
        else:
            counted_BT = signals.mask_BT if term.shared_denominator else mask_BT
            own_BT = mask_BT / counted_BT.sum().double()
            if term.weighs_tokens:
                assert dense is not None, "scoring.dense_teacher scores the teacher for every term that weighs tokens"
                own_BT = own_BT * term.token_weights(dense, mask_BT)
            weights.append(own_BT)
    return weights


def micro_loss(
    learner: Learner,
    done: Pass,
    advantage_BT: Tensor,
    weight_BT: Tensor,
    term_weights: Sequence[Tensor],
    kl_weight_BT: Tensor,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """All loss terms over the rollouts of one forward pass.

    Args:
        done: the pass.
        advantage_BT, weight_BT, term_weights, kl_weight_BT: of the whole mini-batch; ``term_weights`` has one for each term.

    Returns:
        the weighted sum with its gradient; what each term adds to the loss; and sums over tokens that, divided by the tokens
        of the rollouts that were run, are shares and means to log.
    """
    method, device, signals = learner.method, learner.policy.device, done.signals
    mask_BT, advantage_BT = signals.mask_BT.to(device), advantage_BT[done.index].to(device)
    weight_N, kl_weight_N, *term_weight_N = (
        w[done.index].to(device)[mask_BT].float() for w in (weight_BT, kl_weight_BT, *term_weights)
    )
    logp_BT = torch.zeros(mask_BT.shape, device=device).masked_scatter(mask_BT, done.logp_N)
    known_B1 = has_old_logp(learner, signals).to(device)[:, None]
    logp_old_BT = torch.where(known_B1, old_logp(signals).to(device), logp_BT.detach())
    ratio_N = policy_ratio(logp_BT, logp_old_BT).detach()[mask_BT]
    total = torch.zeros((), device=device)
    numbers: dict[str, Tensor] = {}
    counts = {"policy/log_ratio_abs_mean": ratio_N.log().abs().sum(), **sampler_distance(signals, done.logp_N)}
    if method.policy_loss is not None:
        loss_BT = method.policy_loss(logp_BT, logp_old_BT, advantage_BT, mask_BT)
        total = total + (loss_BT[mask_BT] * weight_N).sum()
        clipped_BT = method.policy_loss.clipped(logp_BT, logp_old_BT, advantage_BT, mask_BT)
        counts["policy/clipped_share"] = clipped_BT[mask_BT].sum()
    corrected_N = at_this_moment(learner.importance, signals, done.logp_N)  # for terms without the policy ratio
    for term, loss_N, own_N in zip(method.auxiliary, done.term_N, term_weight_N, strict=True):
        term_loss = (loss_N * (own_N if term.has_ratio else own_N * corrected_N)).sum()
        name = f"policy/{type(term).__name__.lower()}"
        numbers[name] = numbers.get(name, 0.0) + term_loss.detach()
        total = total + term_loss
    if learner.reference is not None and signals.reference_logp_BT is not None:
        kl_N = kl_penalty(done.logp_N, signals.reference_logp_BT.to(device)[mask_BT], learner.train.kl_estimator)
        total = total + learner.train.kl_coef * (kl_N * kl_weight_N * corrected_N).sum()
        counts["policy/kl_reference"] = kl_N.detach().sum()
    return total, numbers, counts
