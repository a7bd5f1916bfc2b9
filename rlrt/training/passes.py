"""Forward passes of the update: the student with its gradient, the teacher's distributions beside it for dense terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlrt.distributed import sharding
from rlrt.distributed.world import parts
from rlrt.methods.entropy import entropy
from rlrt.methods.grpo import policy_ratio
from rlrt.methods.signals import Distributions, Signals
from rlrt.methods.statistic import Statistic
from rlrt.model.forward import Row, micro_batches, over_tokens, response_hidden
from rlrt.model.head import ModuleLayer, OutputLayer, log_softmax, output_layer
from rlrt.training.batch import Batch
from rlrt.training.learner import Learner


@dataclass
class Pass:
    """Per-token results of one student forward pass; the vocabulary distributions themselves are not kept.

    Attributes:
        index: the rollouts, among those of the mini-batch.
        signals: the signals of these rollouts, N response tokens in all.
        logp_N: log-probability of each sampled token, with gradient.
        entropy_N: exact entropy at each token, without gradient; None where it was not asked for.
        statistic_N: the statistics that were asked for, without gradient.
        term_N: the loss of each auxiliary term at each token, with gradient; not yet weighted.
    """

    index: Tensor
    signals: Signals
    logp_N: Tensor
    entropy_N: Tensor | None
    statistic_N: list[Tensor]
    term_N: list[Tensor]


@dataclass
class DenseTeacher:
    """The teacher's side of a pass, for terms that read its distributions.

    Attributes:
        hidden: for each context that dense terms read, by its place: what the output layer reads at the M of N tokens that have
            a teacher, (M, H); empty where no token has one.
        has_N: bool; those tokens.
        index_N: the place of a token among the M.
        temperature: of the softmax.
        layer: its output layer, whose weight is cast once for the pass; None where nothing runs it.
    """

    hidden: dict[int, Tensor]
    has_N: Tensor
    index_N: Tensor
    temperature: float
    layer: OutputLayer | ModuleLayer | None = None

    def logp(self, where: slice, places: Sequence[int]) -> list[Tensor]:
        """The teacher's log-probabilities in these contexts, at those of the tokens ``where`` that have a teacher; empty where
        none has one."""
        has_C = self.has_N[where]
        if self.layer is None or not bool(has_C.any()):
            return []
        index = self.index_N[where][has_C]
        with torch.no_grad():
            return [log_softmax(self.layer.logits(self.hidden[k][index]), self.temperature) for k in places]


def run_teacher(learner: Learner, batch: Batch, index: Tensor, mask_BT: Tensor) -> DenseTeacher:
    """Run the teacher over the rollouts ``index`` that have one, where a dense term reads its distributions.

    Args:
        mask_BT: the response tokens of these rollouts, on the policy's device.
    """
    places, model = learner.method.dense_places(), learner.teacher.model
    has_B = batch.has_dense_teacher(places)[index] & bool(places)
    has_N = has_B.to(mask_BT.device)[:, None].expand_as(mask_BT)[mask_BT]
    hidden: dict[int, Tensor] = {}
    layer = None
    shared = bool(places) and sharding.is_sharded(model)  # then all ranks run the teacher, or none does
    if bool(has_N.any()) or shared:
        dummy = [batch.rows[int(index[0])]]  # for a rank without a teacher; nothing reads its result
        taught = index[has_B].tolist()
        views = [[row for i in taught if (row := batch.teacher_rows[k][i]) is not None] or dummy for k in places]
        with torch.no_grad():
            # its output layer is read within the student's pass
            outputs = sharding.run(
                model, lambda: tuple(response_hidden(model, rows) for rows in views), keeps_head=True
            )
            layer = output_layer(model)
        hidden = dict(zip(places, outputs, strict=True))
    return DenseTeacher(hidden, has_N, has_N.cumsum(0) - 1, learner.policy.temperature, layer)


def forward_pass(
    learner: Learner, batch: Batch, index: Tensor, with_entropy: bool = False, statistics: Sequence[Statistic] = ()
) -> Pass:
    """Run the student, and the teacher where a dense term reads it, over the rollouts ``index`` of a mini-batch.

    Args:
        with_entropy, statistics: what to measure of the student's distributions besides.
    """
    policy, terms = learner.policy, learner.method.auxiliary
    part = batch.signals.rows(index)
    mask_BT = part.mask_BT.to(policy.device)
    token_N = part.token_BT.to(policy.device)[mask_BT]
    known_N = has_old_logp(learner, part)[:, None].expand_as(part.mask_BT).to(policy.device)[mask_BT]
    old_N = old_logp(part).to(policy.device)[mask_BT]
    teacher = run_teacher(learner, batch, index, mask_BT)
    beside = [learner.method.places_beside(term) for term in terms]

    def compute(logp_CV: Tensor, where: slice) -> tuple[Tensor, ...]:
        logp_C = logp_CV.gather(-1, token_N[where, None])[:, 0]
        ratio_C = policy_ratio(logp_C, torch.where(known_N[where], old_N[where], logp_C.detach())).detach()
        columns = [logp_C]
        if with_entropy:
            columns.append(entropy(logp_CV.detach()))
        columns += [statistic(logp_CV.detach(), token_N[where]) for statistic in statistics]
        for term, places in zip(terms, beside, strict=True):
            if not term.needs_teacher:
                columns.append(term(Distributions(logp_CV, None, ratio_C)))
            elif not (shown := teacher.logp(where, [0, *places])):
                columns.append(torch.zeros_like(logp_C))
            else:
                has_C = teacher.has_N[where]
                loss = term(Distributions(logp_CV[has_C], shown[0], ratio_C[has_C], shown[1:]))
                columns.append(torch.zeros_like(logp_C).masked_scatter(has_C, loss))
        return tuple(columns)

    rows = [batch.rows[i] for i in index.tolist()]
    logp_N, *more = sharding.run(
        policy.model,
        lambda: over_tokens(policy.model, response_hidden(policy.model, rows), policy.temperature, compute),
    )
    entropy_N = more.pop(0) if with_entropy else None
    return Pass(index, part, logp_N, entropy_N, more[: len(statistics)], more[len(statistics) :])


def has_old_logp(learner: Learner, signals: Signals) -> Tensor:
    """Bool_B: the rollouts whose log-probabilities at rollout time make the policy ratio; of the others the ratio is 1.

    Under ``train.old_logp=trainer`` and with one mini-batch a step the policy is still the one at rollout time.
    """
    if signals.old_logp_BT is not None:
        return torch.ones_like(signals.scored_B)
    return signals.scored_B & (learner.train.minibatches > 1)


def old_logp(signals: Signals) -> Tensor:
    """logp_BT that the policy ratio divides by, nats: the sampler's or the trainer's, as ``train.old_logp`` says."""
    return signals.logp_BT if signals.old_logp_BT is None else signals.old_logp_BT


def sampler_distance(signals: Signals, logp_N: Tensor) -> dict[str, Tensor]:
    """Sums over the tokens of a pass that, divided by their number, are the distances of ``rlrt.training.scoring.mismatch``.

    For ``train.old_logp=sampler``, where no scoring pass measures them, and an engine that is not exact; else empty.
    """
    if signals.sampler_logp_BT is None or signals.old_logp_BT is None:
        return {}
    device = logp_N.device
    sampler_N = signals.sampler_logp_BT.to(device)[signals.mask_BT.to(device)]
    gap_N = torch.where(sampler_N.isfinite(), logp_N.detach() - sampler_N, 0.0)
    weight_N = gap_N.exp()
    return {
        "sampler/logp_gap_abs_mean": gap_N.abs().sum(),
        "sampler/kl": (weight_N - 1 - gap_N).sum(),
        "sampler/importance_mean": weight_N.sum(),
    }


def passes(learner: Learner, rows: Sequence[Row], index: Tensor) -> Iterator[tuple[Tensor, bool, bool]]:
    """Cut the rollouts ``index`` into this rank's micro-batches: shared out over the ranks by length, within the token budget.

    Every rank must run the same number of passes, since the ranks exchange weights or gradients in each; a rank with fewer pads
    with a dummy rollout whose loss is multiplied by 0.

    Yields:
        rollouts of the mini-batch; whether they count (False: a dummy); whether it is the last pass.
    """
    if not len(index):
        return
    share = parts([len(rows[i]) for i in index.tolist()], learner.world.size)[learner.world.rank]
    mine = index[share.start : share.stop]
    batches = micro_batches(learner.policy.model, [rows[i] for i in mine.tolist()], learner.train.budget)
    count = learner.world.most(len(batches))
    for k in range(count):
        learner.check_stop()
        counted = k < len(batches)
        yield mine[torch.tensor(batches[k])] if counted else index[:1], counted, k == count - 1
