"""RLRT (arXiv 2605.10781): on correct rollouts, reinforce the tokens that the teacher would not have predicted.

    D_t = sg(log P_S(y_t) - log P_T(y_t))
    w_t = exp(sign(A) D_t)                                               eq. 6
    A_t = A [(1 - lam) + lam clip(w_t, 1 - eps_w, 1 + eps_w)]  if correct, else A    eq. 7

lam = 0 is GRPO, bit for bit. RLSD (arXiv 2604.03128) is the same weight with the sign turned, on all rollouts:
``direction=forward``, ``gate=all``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.contexts import Context, Default, WithoutQuestion
from rlrt.methods.declared import Ablation, Alarm, Curve
from rlrt.methods.grpo import MAX_LOG_GAP
from rlrt.methods.method import Credit
from rlrt.methods.signals import Credited, Signals, mean_where
from rlrt.methods.split import PARTS, split_gap


def scheduled_lambda(initial: float, schedule: str, decay_steps: int, step: int) -> float:
    """The coefficient at ``step`` (from 1): constant, or initial * max(0, 1 - (step - 1) / decay_steps)."""
    if schedule == "constant":
        return initial
    return initial * max(0.0, 1.0 - (step - 1) / decay_steps)


def teacher_weight(
    gap_BT: Float[Tensor, "B T"], advantage_B: Float[Tensor, "B"], epsilon_w: float, reversed_direction: bool
) -> Float[Tensor, "B T"]:
    """clip(exp(+-sign(A) D), 1 - eps_w, 1 + eps_w); plus for the reversed teacher (eq. 6), minus for RLSD.

    Args:
        gap_BT: D = log P_S - log P_T, nats; clamped to +-20.
        advantage_B: its sign alone is read.
        epsilon_w: half-width of the clip.
        reversed_direction: True for RLRT.
    """
    sign_B1 = advantage_B.sign()[:, None] * (1.0 if reversed_direction else -1.0)
    weight_BT = (sign_B1 * gap_BT.clamp(-MAX_LOG_GAP, MAX_LOG_GAP)).exp()
    return weight_BT.clamp(1.0 - epsilon_w, 1.0 + epsilon_w)


def shuffled(
    values_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"], seed_B: Int[Tensor, "B"]
) -> Float[Tensor, "B T"]:
    """Each rollout's values permuted over its own tokens, by its own seed."""
    result = values_BT.clone()
    for b, seed in enumerate(seed_B.tolist()):
        where = mask_BT[b].nonzero()[:, 0]
        order = torch.randperm(len(where), generator=torch.Generator().manual_seed(seed)).to(where.device)
        result[b, where] = values_BT[b, where[order]]
    return result


@dataclass
class TeacherWeight(Credit):
    """Token credit by the information asymmetry between student and teacher."""

    needs_teacher = True
    alarms = (Alarm("rlrt/gap_mean", "the mean gap D is above 2 nats, as before every collapse we saw", above=2.0),)
    curves = (
        Curve("rlrt/gap_mean", "D", "mean gap D on correct rollouts with a teacher, nats"),
        Curve("rlrt/weight_clipped_share", "clipping", "clipped weights, share of tokens", 0.0, 1.0),
    )
    ablation = Ablation(
        x="lambda_init",
        by="epsilon_w",
        x_label="reversed-teacher coefficient lam (0: GRPO)",
        by_label="eps_w",
        where={"gate": "correct", "direction": "reversed"},
    )
    tags: ClassVar = {"rlrt.lambda": "lambda_init"}

    lambda_init: float = key("the (reversed-)teacher coefficient lam at the first step", least=0, most=1)
    lambda_schedule: str = key("how lam goes on", choices=("constant", "linear"))
    lambda_decay_steps: int = key("steps over which linear lam reaches 0", "steps", least=1)
    epsilon_w: float = key("half-width of the weight's clip", least=0, most=1)
    gate: str = key("which rollouts are weighted (ungated RLRT collapses)", choices=("correct", "all"))
    direction: str = key("reinforce against the teacher, or with it", choices=("reversed", "forward"))
    shuffle_weights: bool = key("control: the same weights shuffled over each rollout's tokens")
    mask_special_tokens: bool = key("weight 1 on end-of-sequence and other special tokens")
    gap: str = key(
        "what weighs a token: D; D, its two parts logged; control: log P_S - log P_R or log P_R - log P_T alone, P_R being "
        "shown the solution without the question",
        choices=PARTS,
    )

    def contexts(self) -> Sequence[Context]:
        """The configured one; where D is split, the same text without the question too."""
        return (Default(),) if self.gap == "whole" else (Default(), WithoutQuestion())

    def teacher_rows(self, advantage_B: Tensor, signals: Signals) -> Tensor:
        """Rollouts with an advantage that pass the gate; none where lam is 0."""
        if self._lambda(signals.step) == 0.0:
            return torch.zeros_like(signals.correct_B)
        return (advantage_B != 0) & self._gate(signals)

    def __call__(self, advantage_B: Tensor, signals: Signals) -> Credited:
        """Eq. 7 where a teacher is there and the gate is open; the plain advantage elsewhere."""
        lam = self._lambda(signals.step)
        plain_BT = advantage_B[:, None] * signals.mask_BT
        if not signals.teachers:
            return Credited(plain_BT, metrics={"rlrt/lambda": lam})
        teacher = signals.teachers[0]
        weighted_B = teacher.has_B & self._gate(signals)
        gap_BT = (signals.logp_BT - teacher.logp_BT) * signals.mask_BT
        part_BT, split = gap_BT, None
        if self.gap != "whole":
            split = split_gap(signals)
            part_BT, weighted_B = split.part(self.gap), weighted_B & split.has_B
        weight_BT = teacher_weight(part_BT, advantage_B, self.epsilon_w, self.direction == "reversed")
        gate_BT = signals.mask_BT & self.token_gate(signals)
        if self.shuffle_weights:
            weight_BT = shuffled(weight_BT, gate_BT, signals.seed_B)
        weighted_BT = gate_BT & weighted_B[:, None]
        factor_BT = torch.where(weighted_BT, (1.0 - lam) + lam * weight_BT, torch.ones_like(weight_BT))
        taught_BT = signals.mask_BT & weighted_B[:, None]
        metrics = self._metrics(lam, gap_BT, weight_BT, taught_BT, gate_BT, signals)
        metrics |= split.metrics(taught_BT & signals.correct_B[:, None]) if split is not None else {}
        return Credited(plain_BT * factor_BT, metrics=metrics)

    def token_gate(self, signals: Signals) -> Tensor:
        """Bool_BT: the tokens that are weighted; the others keep weight 1. Override it for a gate of your own.

        Factor and weight metrics read this gate. By default all tokens, or all but special ones (``mask_special_tokens``).
        """
        return signals.mask_BT & ~signals.special_BT if self.mask_special_tokens else signals.mask_BT

    def _lambda(self, step: int) -> float:
        return scheduled_lambda(self.lambda_init, self.lambda_schedule, self.lambda_decay_steps, step)

    def _gate(self, signals: Signals) -> Tensor:
        return signals.correct_B if self.gate == "correct" else torch.ones_like(signals.correct_B)

    def _metrics(
        self, lam: float, gap_BT: Tensor, weight_BT: Tensor, taught_BT: Tensor, gate_BT: Tensor, signals: Signals
    ) -> dict[str, float]:
        """D over the tokens of correct rollouts with a teacher, gated or not; weights over the gated tokens alone."""
        where_BT = taught_BT & gate_BT
        correct_BT = taught_BT & signals.correct_B[:, None]
        clipped_BT = (weight_BT <= 1 - self.epsilon_w) | (weight_BT >= 1 + self.epsilon_w)
        measured = {
            "rlrt/gap_mean": (gap_BT, correct_BT),
            "rlrt/gap_abs_mean": (gap_BT.abs(), correct_BT),
            "rlrt/self_driven_share": ((gap_BT > 0).float(), correct_BT),
            "rlrt/weight_mean": (weight_BT, where_BT),
            "rlrt/weight_clipped_share": (clipped_BT.float(), where_BT),
        }
        means = {name: mean_where(values, where) for name, (values, where) in measured.items() if bool(where.any())}
        return {"rlrt/lambda": lam} | means
