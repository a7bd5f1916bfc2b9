"""The values that a method may read of a step, and those that its slots return. Shape suffixes: see ``rlrt.types``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlrt.methods.statistic import Statistic


@dataclass
class TeacherSignal:
    """One teacher context's view of the rollouts.

    Attributes:
        has_B: bool; the rollouts that have this context.
        logp_BT: log P_T of the sampled tokens, nats; zero where ``has_B`` is False.
        entropy_BT: the teacher's exact entropy, nats; zero where ``has_B`` is False.
        statistics: what the credit declared, value_BT by the statistic; zero where ``has_B`` is False.
    """

    has_B: Tensor
    logp_BT: Tensor
    entropy_BT: Tensor
    statistics: dict[Statistic, Tensor] = field(default_factory=dict)

    def rows(self, index: Tensor) -> TeacherSignal:
        """The teacher's view of some rollouts."""
        statistics = {name: value[index] for name, value in self.statistics.items()}
        return TeacherSignal(self.has_B[index], self.logp_BT[index], self.entropy_BT[index], statistics)


@dataclass
class Signals:
    """Everything known about a step's rollouts when credit is assigned.

    Attributes:
        step: the update this is for, from 1.
        group_B: index of the rollout's group.
        reward_B: reward, possibly shaped.
        correct_B: bool; the verifier's verdict. Gates read this, never the reward.
        seed_B: a seed of each rollout's own, for methods that draw random numbers.
        token_BT: sampled tokens.
        mask_BT: bool; True on response tokens, the first end-of-sequence token included.
        special_BT: bool; end-of-sequence and other special tokens.
        logp_BT: log P_S of the sampled tokens at the weights at which this step's updates begin (the trainer's own forward),
            nats; for a live teacher's credit at the weights of the mini-batch.
        entropy_BT: the student's exact entropy at those weights, nats.
        scored_B: bool; the rollouts for which ``logp_BT`` and ``entropy_BT`` were computed.
        sampler_logp_BT: what an engine with weights or arithmetic of its own says that it sampled with, or None; nats.
        old_logp_BT: the sampler's log-probabilities, where the policy ratio divides by them (``train.old_logp=sampler``); None:
            it divides by ``logp_BT``; nats.
        advantage_B: the sequence advantage, before any token credit; None until the step's advantages are known.
        text_B: the responses' texts, for methods that read them; empty where nobody gave them.
        teachers: one entry per teacher context; empty where the method asks for none.
        reference_logp_BT: log-probability under the step-0 policy, or None.
        statistics: what the credit declared of the student's distributions, value_BT by the statistic; known where
            ``scored_B``.
    """

    step: int
    group_B: Tensor
    reward_B: Tensor
    correct_B: Tensor
    seed_B: Tensor
    token_BT: Tensor
    mask_BT: Tensor
    special_BT: Tensor
    logp_BT: Tensor
    entropy_BT: Tensor
    scored_B: Tensor
    sampler_logp_BT: Tensor | None = None
    old_logp_BT: Tensor | None = None
    advantage_B: Tensor | None = None
    text_B: list[str] = field(default_factory=list)
    teachers: list[TeacherSignal] = field(default_factory=list)
    reference_logp_BT: Tensor | None = None
    statistics: dict[Statistic, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward_B)

    def rows(self, index: Tensor) -> Signals:
        """The signals of some rollouts, in the order of ``index`` (long, or a bool mask of length B)."""
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            values[f.name] = value[index] if isinstance(value, torch.Tensor) else value
        order = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        values["text_B"] = [self.text_B[i] for i in order.tolist()] if self.text_B else []
        values["teachers"] = [teacher.rows(index) for teacher in self.teachers]
        values["statistics"] = {name: value[index] for name, value in self.statistics.items()}
        return Signals(**values)


@dataclass
class Credited:
    """The result of a token credit.

    Attributes:
        advantage_BT: advantage of every token; zero outside the mask.
        select_BT: bool, or None. Where given, each rollout's loss is the mean over its unselected tokens plus the mean
            over its selected ones times ``select_weight``, an empty part omitted.
        select_weight: see there.
        metrics: plain numbers to log.
    """

    advantage_BT: Tensor
    select_BT: Tensor | None = None
    select_weight: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)

    def rows(self, index: Tensor) -> Credited:
        """The credit of some rollouts."""
        select = None if self.select_BT is None else self.select_BT[index]
        return Credited(self.advantage_BT[index], select, self.select_weight, self.metrics)


@dataclass
class Distributions:
    """Next-token distributions at N response tokens of a micro-batch, for auxiliary losses.

    Attributes:
        logp_NV: the student's log-probabilities over the vocabulary at the sampling temperature, with gradient.
        teacher_logp_NV: the teacher's, without gradient; None where the loss asks for no teacher. Tokens without
            a teacher are not among them.
        ratio_N: pi / pi_old of the sampled token, without gradient.
        beside_logp_NV: the teacher's in each of the contexts that the loss asks for beside the first.
    """

    logp_NV: Tensor
    teacher_logp_NV: Tensor | None
    ratio_N: Tensor
    beside_logp_NV: Sequence[Tensor] = ()


def mean_where(values: Tensor, where: Tensor) -> float:
    """Mean of ``values`` where the mask is True. Undefined for an empty mask: the caller checks."""
    return float(values[where].double().mean())
