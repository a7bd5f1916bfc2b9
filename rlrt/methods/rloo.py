"""RLOO (arXiv 2402.14740): a rollout against the mean of the *other* rollouts of its prompt.

A_i = R_i - mean over j != i of R_j = G / (G - 1) (R_i - mean)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlrt.methods.grpo import group_advantage
from rlrt.methods.method import Advantage
from rlrt.methods.signals import Signals


def leave_one_out(reward_B: Float[Tensor, "B"], group_B: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """A = R - mean of the others in the group; exactly 0 where a group's rewards are all equal or it has one rollout."""
    size = torch.bincount(group_B).to(reward_B.dtype)[group_B]
    return group_advantage(reward_B, group_B, scale_by_std=False) * size / (size - 1).clamp(min=1)


@dataclass
class LeaveOneOutAdvantage(Advantage):
    """RLOO's baseline; no keys."""

    def __call__(self, signals: Signals) -> Tensor:
        """advantage_B."""
        return leave_one_out(signals.reward_B, signals.group_B)
