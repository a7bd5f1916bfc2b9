"""From credit to gradient: the loss of one mini-batch, micro-batch by micro-batch, and the optimiser step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlrt.distributed import sharding
from rlrt.distributed.world import parts
from rlrt.methods.aggregate import kl_penalty, token_weights
from rlrt.methods.entropy import entropy
from rlrt.methods.grpo import policy_ratio
from rlrt.methods.signals import Credited, Distributions, Signals, TeacherSignal
from rlrt.model.forward import Row, log_probabilities, micro_batches, over_tokens, response_hidden
from rlrt.training.learner import Learner


@dataclass
class Pass:
    """What one forward pass of the student over some rollouts leaves: everything that needs whole distributions.

    Attributes:
        index: the rollouts, among those of the mini-batch.
        logp_N: log-probability of each sampled token, with gradient.
        entropy_N: exact entropy at each, without; None where nobody asked for it.
        term_N: the loss of each auxiliary term at each token, with gradient; not yet weighted.
    """

    index: Tensor
    logp_N: Tensor
    entropy_N: Tensor | None
    term_N: list[Tensor]


def forward_pass(
    learner: Learner,
    rows: Sequence[Row],
    contexts: Sequence[Row | None],
    signals: Signals,
    index: Tensor,
    with_entropy: bool = False,
) -> Pass:
    """Run the student, and the teacher where a dense term wants it, over the rollouts ``index`` of a mini-batch.

    Args:
        rows, contexts, signals: of the whole mini-batch; ``contexts`` are the teacher's sequences.
        with_entropy: whether to measure the entropy too.
    """
    policy, terms = learner.policy, learner.method.auxiliary
    part = signals.rows(index)
    mask_BT = part.mask_BT.to(policy.device)
    token_N = part.token_BT.to(policy.device)[mask_BT]
    known_N = (
        (part.scored_B[:, None] & (learner.train.minibatches > 1)).expand_as(part.mask_BT).to(policy.device)[mask_BT]
    )
    old_N = part.logp_BT.to(policy.device)[mask_BT]
    taught = [contexts[i] for i in index.tolist()] if learner.method.distils else []
    has_B = torch.tensor([row is not None for row in taught] or [False] * len(index), device=policy.device)
    has_N = has_B[:, None].expand_as(mask_BT)[mask_BT]
    place_N = has_N.cumsum(0) - 1  # of a token among those that have a teacher
    teacher_MH = None
    together = learner.method.distils and sharding.is_sharded(learner.teacher.model)  # run by all processes, or by none
    if bool(has_N.any()) or together:
        shown = [row for row in taught if row is not None] or [rows[int(index[0])]]
        with torch.no_grad():
            (teacher_MH,) = sharding.run(
                learner.teacher.model, lambda: (response_hidden(learner.teacher.model, shown),)
            )

    def compute(logp_CV: Tensor, where: slice) -> tuple[Tensor, ...]:
        logp_C = logp_CV.gather(-1, token_N[where, None])[:, 0]
        ratio_C = policy_ratio(logp_C, torch.where(known_N[where], old_N[where], logp_C.detach())).detach()
        found = [logp_C]
        if with_entropy:
            found.append(entropy(logp_CV.detach()))
        has_C = has_N[where]
        for term in terms:
            if not term.needs_teacher:
                found.append(term(Distributions(logp_CV, None, ratio_C)))
            elif teacher_MH is None or not bool(has_C.any()):
                found.append(torch.zeros_like(logp_C))
            else:
                with torch.no_grad():
                    hidden = teacher_MH[place_N[where][has_C]]
                    teacher_logp = log_probabilities(learner.teacher.model, hidden, policy.temperature)
                loss = term(Distributions(logp_CV[has_C], teacher_logp, ratio_C[has_C]))
                found.append(torch.zeros_like(logp_C).masked_scatter(has_C, loss))
        return tuple(found)

    chosen = [rows[i] for i in index.tolist()]
    logp_N, *more = sharding.run(
        policy.model,
        lambda: over_tokens(policy.model, response_hidden(policy.model, chosen), policy.temperature, compute),
    )
    entropy_N = more.pop(0) if with_entropy else None
    return Pass(index, logp_N, entropy_N, more)


def minibatch_step(
    learner: Learner,
    rows: Sequence[Row],
    contexts: Sequence[Row | None],
    signals: Signals,
    credited: Credited,
    lr: float,
    ready: Pass | None = None,
) -> dict[str, float]:
    """Forward and backward over one mini-batch by micro-batches, then one optimiser step.

    Denominators count the tokens of the whole mini-batch, skipped rollouts included, so the gradient does not depend
    on how it is cut into micro-batches.

    Args:
        ready: the forward pass, where it was run before for the student's side of the credit.
    """
    method, train = learner.method, learner.train
    has_B = torch.tensor([c is not None for c in contexts])
    weight_BT = token_weights(
        signals.mask_BT, train.aggregation, learner.max_new_tokens, credited.select_BT, credited.select_weight
    )
    term_weights = auxiliary_weights(learner, contexts, signals, has_B, weight_BT)
    left_B1 = method.left_to_terms(has_B, signals)[:, None]
    advantage_BT = torch.where(left_B1, torch.zeros_like(credited.advantage_BT), credited.advantage_BT)
    advantage_BT = advantage_BT * importance(signals, learner.importance_clip)
    touched_B = method.touched_rows(advantage_BT, has_B, signals)
    if learner.reference is not None:
        touched_B = torch.ones_like(touched_B)
    index = touched_B.nonzero()[:, 0]
    tokens = int(signals.mask_BT[touched_B].sum())
    sums: dict[str, float] = {"policy/loss": 0.0}
    for chosen, counted, last in passes(learner, rows, index):
        with sharding.gradients_stay(learner.policy.model, here=not last):
            done = forward_pass(learner, rows, contexts, signals, chosen) if ready is None else ready
            loss, numbers, counts = micro_loss(learner, done, signals, advantage_BT, weight_BT, term_weights)
            # gradients are averaged over processes, and the loss is a sum over all their rollouts
            (loss * (learner.world.size if counted else 0.0)).backward()
        if not counted:
            continue
        sums["policy/loss"] += float(loss.detach())
        for name, value in numbers.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + float(value) / tokens
    sums = learner.world.sum(sums)
    sums["policy/skipped_share"] = 1.0 - len(index) / len(rows)
    sums["policy/grad_norm"] = learner.policy.step(lr, train.max_grad_norm) if len(index) else 0.0
    if len(index) and math.isfinite(sums["policy/grad_norm"]):
        learner.teacher.follow()
    return sums


def passes(learner: Learner, rows: Sequence[Row], index: Tensor) -> Iterator[tuple[Tensor, bool, bool]]:
    """This process's micro-batches: the rollouts ``index`` are shared out by length, and cut by the token budget.

    Yields:
        rollouts of the mini-batch; whether they count; whether it is the last pass. All processes make as many passes, since
        they exchange weights or gradients in each: one that has fewer repeats a rollout that counts for nothing.
    """
    if not len(index):
        return
    share = parts([len(rows[i]) for i in index.tolist()], learner.world.size)[learner.world.rank]
    mine = index[share.start : share.stop]
    batches = micro_batches(learner.policy.model, [rows[i] for i in mine.tolist()], learner.train.token_budget)
    count = learner.world.most(len(batches))
    for k in range(count):
        counted = k < len(batches)
        yield mine[torch.tensor(batches[k])] if counted else index[:1], counted, k == count - 1


def importance(signals: Signals, clip: float | None) -> Tensor:
    """Truncated importance weights of the policy loss's tokens, min(pi_old / pi_sampler, clip); 1 where they are one.

    pi_old is the trainer's probability at the weights at which this step's updates begin, so the weight corrects for the
    sampler's other arithmetic and for its older weights alike (Yao et al., On the Rollout-Training Mismatch in Modern RL
    Systems, 2025).
    """
    if signals.sampler_logp_BT is None or clip is None:
        return torch.ones_like(signals.logp_BT)
    weight_BT = (signals.logp_BT - signals.sampler_logp_BT).exp().clamp(max=clip)
    return torch.where(signals.mask_BT, weight_BT, torch.ones_like(weight_BT))


def auxiliary_weights(
    learner: Learner, contexts: Sequence[Row | None], signals: Signals, has_B: Tensor, weight_BT: Tensor
) -> list[Tensor]:
    """weight_BT of every auxiliary term, each by its own rule.

    A term without a teacher has the policy loss's weights. A term with one counts the tokens of its own rollouts that have a
    teacher: their weights sum to 1, or under ``shared_denominator`` to their share of the mini-batch's tokens.

    Args:
        contexts: the teacher's sequences.
        has_B: the rollouts that have a teacher.
        weight_BT: the policy loss's.
    """
    method, weights = learner.method, list[Tensor]()
    scored: TeacherSignal | None = None
    for term in method.auxiliary:
        mask_BT = signals.mask_BT & method.taught_rows(term, has_B, signals)[:, None]
        if not term.needs_teacher:
            weights.append(weight_BT)
        elif not bool(mask_BT.any()):
            weights.append(torch.zeros_like(signals.logp_BT, dtype=torch.float64))
        else:
            counted_BT = signals.mask_BT if term.shared_denominator else mask_BT
            own_BT = mask_BT / counted_BT.sum().double()
            if term.weighs_tokens:
                scored = scored or teacher_view(learner, contexts, signals)
                own_BT = own_BT * term.token_weights(scored, mask_BT)
            weights.append(own_BT)
    return weights


def teacher_view(learner: Learner, contexts: Sequence[Row | None], signals: Signals) -> TeacherSignal:
    """The teacher's log-probabilities and entropies of a mini-batch."""
    taught = signals.rows(torch.arange(len(signals)))
    learner.score(taught, [], torch.zeros(0, dtype=torch.bool), [contexts])
    return taught.teachers[0]


def micro_loss(
    learner: Learner,
    done: Pass,
    signals: Signals,
    advantage_BT: Tensor,
    weight_BT: Tensor,
    term_weights: Sequence[Tensor],
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """All loss terms over the rollouts of one forward pass.

    Args:
        done: the pass.
        signals, advantage_BT, weight_BT, term_weights: of the whole mini-batch; ``term_weights`` has one for each term.

    Returns:
        the weighted sum with its gradient; what each term adds to the loss; and sums over tokens that, divided by the
        mini-batch's tokens, are shares and means to log.
    """
    method, device = learner.method, learner.policy.device
    part = signals.rows(done.index)
    mask_BT, advantage_BT = part.mask_BT.to(device), advantage_BT[done.index].to(device)
    weight_N, *term_weight_N = (w[done.index].to(device)[mask_BT].float() for w in (weight_BT, *term_weights))
    logp_BT = torch.zeros(mask_BT.shape, device=device).masked_scatter(mask_BT, done.logp_N)
    known_B1 = part.scored_B.to(device)[:, None] & (learner.train.minibatches > 1)
    logp_old_BT = torch.where(known_B1, part.logp_BT.to(device), logp_BT.detach())
    ratio_N = policy_ratio(logp_BT, logp_old_BT).detach()[mask_BT]
    total = torch.zeros((), device=device)
    numbers: dict[str, Tensor] = {}
    counts = {"policy/log_ratio_abs_mean": ratio_N.log().abs().sum()}
    if method.policy_loss is not None:
        loss_BT = method.policy_loss(logp_BT, logp_old_BT, advantage_BT, mask_BT)
        total = total + (loss_BT[mask_BT] * weight_N).sum()
        clipped_BT = method.policy_loss.clipped(logp_BT, logp_old_BT, advantage_BT, mask_BT)
        counts["policy/clipped_share"] = clipped_BT[mask_BT].sum()
    for term, loss_N, own_N in zip(method.auxiliary, done.term_N, term_weight_N, strict=True):
        term_loss = (loss_N * own_N).sum()
        name = f"policy/{type(term).__name__.lower()}"
        numbers[name] = numbers.get(name, 0.0) + term_loss.detach()
        total = total + term_loss
    if learner.reference is not None and part.reference_logp_BT is not None:
        kl_N = kl_penalty(done.logp_N, part.reference_logp_BT.to(device)[mask_BT], learner.train.kl_estimator)
        total = total + learner.train.kl_coef * (kl_N * weight_N).sum()
        counts["policy/kl_reference"] = kl_N.detach().sum()
    return total, numbers, counts
