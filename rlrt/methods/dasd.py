"""DASD (arXiv 2605.22263): the distillation signal of each token, relative to its rollout, where the student is sure enough.

    d      = log P_T(y_t) - log P_S(y_t),   dbar = d / (median_t |d| + eps)
    omega  = tanh((Q_.20(H_S) - H_t) / (mean absolute deviation of H_S + eps)) sigmoid(|dbar| - 1)
    A_t    = A + beta omega_t dbar_t

All statistics are over the tokens of one rollout. omega is positive at the fifth of the tokens where the student's entropy is
lowest, negative elsewhere: there the teacher is followed, elsewhere read in reverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.grpo import MAX_LOG_GAP
from rlrt.methods.method import Credit
from rlrt.methods.signals import Credited, Signals


def adaptive_signal(
    gap_BT: Float[Tensor, "B T"],
    entropy_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"],
    quantile: float,
    eps: float,
) -> Float[Tensor, "B T"]:
    """omega_t dbar_t as in the module's text; zero outside the mask.

    Args:
        gap_BT: d = log P_T - log P_S, nats; clamped to +-20.
        entropy_BT: the student's entropy, nats.
        mask_BT: response tokens.
        quantile: 0.2 in the paper; linear between neighbours.
        eps: keeps both denominators off zero, nats. Where a student is sure of most tokens, the median of |d| is all but zero
            and this is what bounds dbar.
    """
    result = torch.zeros_like(gap_BT)
    for b in range(len(gap_BT)):
        where = mask_BT[b]
        if not bool(where.any()):
            continue
        gap, entropy = gap_BT[b, where].clamp(-MAX_LOG_GAP, MAX_LOG_GAP), entropy_BT[b, where]
        relative = gap / (gap.abs().quantile(0.5) + eps)
        spread = (entropy - entropy.mean()).abs().mean()
        sure = torch.tanh((entropy.quantile(quantile) - entropy) / (spread + eps))
        result[b, where] = sure * torch.sigmoid(relative.abs() - 1) * relative
    return result


@dataclass
class AdaptiveCredit(Credit):
    """DASD's credit."""

    needs_teacher = True
    needs_entropy = True
    multiplicative = False

    dasd_beta: float = key("strength of the added signal", least=0)
    dasd_quantile: float = key(
        "quantile of the student's entropy that divides sure tokens from others", least=0, most=1
    )

    dasd_eps: float = key("keeps the medians and deviations that are divided by off zero", "nats", above=0)

    def teacher_rows(self, advantage_B: Tensor, signals: Signals) -> Tensor:
        """All rollouts, unless beta is 0."""
        return signals.mask_BT.any(1) & (self.dasd_beta > 0)

    def __call__(self, advantage_B: Tensor, signals: Signals) -> Credited:
        """A + beta omega dbar on rollouts with a teacher."""
        plain_BT = advantage_B[:, None] * signals.mask_BT
        if not signals.teachers:
            return Credited(plain_BT)
        teacher = signals.teachers[0]
        where_BT = signals.mask_BT & teacher.has_B[:, None]
        added_BT = adaptive_signal(
            teacher.logp_BT - signals.logp_BT, signals.entropy_BT, where_BT, self.dasd_quantile, self.dasd_eps
        )
        metrics = {}
        if bool(where_BT.any()):
            metrics["dasd/added_abs_mean"] = float((self.dasd_beta * added_BT[where_BT]).abs().double().mean())
        return Credited(plain_BT + self.dasd_beta * added_BT, metrics=metrics)
