"""CISPO (arXiv 2506.13585): the importance weight is capped, the gradient of the log-probability never cut.

L_t = -sg(min(rho_t, cap)) A_t log pi_t
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.grpo import policy_ratio
from rlrt.methods.method import PolicyLoss


def capped_loss(
    logp_BT: Float[Tensor, "B T"],
    logp_old_BT: Float[Tensor, "B T"],
    advantage_BT: Float[Tensor, "B T"],
    cap: float,
) -> Float[Tensor, "B T"]:
    """-sg(min(rho, cap)) A log pi per token."""
    return -policy_ratio(logp_BT, logp_old_BT).detach().clamp(max=cap) * advantage_BT * logp_BT


@dataclass
class CappedLoss(PolicyLoss):
    """CISPO's loss."""

    cispo_cap: float = key("upper bound of the importance weight pi / pi_old", above=0)

    def __call__(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """loss_BT."""
        return capped_loss(logp_BT, logp_old_BT, advantage_BT, self.cispo_cap)

    def clipped(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Tokens whose weight is capped."""
        return (policy_ratio(logp_BT, logp_old_BT) > self.cispo_cap) & (advantage_BT != 0)
