"""GSPO (arXiv 2507.18071): one importance ratio for a whole response, its geometric mean over the tokens.

    s    = exp(mean_t(log pi - log pi_old))
    s_t  = sg(s) pi / sg(pi)                              token form, which takes token advantages (eq. 14)
    L_t  = -min(s_t A_t, clip(s_t, 1 - clip_low, 1 + clip_high) A_t),   mean of per-response means

With one advantage for all tokens the token form has the gradient of the sequence form. Bounds are far tighter than GRPO's
(3e-4 and 4e-4), since s moves far less than a token's ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from rlrt.methods.grpo import MAX_LOG_GAP, ClippedLoss


def sequence_ratio(
    logp_BT: Float[Tensor, "B T"], logp_old_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """s_t = sg(s) pi / sg(pi): the same value at all tokens of a rollout, the gradient of each token's own log-probability."""
    gap_BT = (logp_BT.detach() - logp_old_BT).clamp(-MAX_LOG_GAP, MAX_LOG_GAP) * mask_BT
    mean_B1 = gap_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    return mean_B1.exp() * (logp_BT - logp_BT.detach()).exp()


@dataclass
class SequenceClippedLoss(ClippedLoss):
    """GSPO's trust region: GRPO's bounds about s, and ``train.aggregation`` is ``sequence``."""

    def ratio(self, logp_BT: Tensor, logp_old_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """ratio_BT: s_t, so all tokens of a response are held back together."""
        return sequence_ratio(logp_BT, logp_old_BT, mask_BT)
