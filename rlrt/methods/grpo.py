"""GRPO (arXiv 2402.03300): group advantages and the clipped policy loss. Dr.GRPO and DAPO are choices of its keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.method import Advantage, PolicyLoss
from rlrt.methods.signals import Signals

MAX_LOG_GAP = 20.0
"""Differences of log-probabilities are clamped to this before ``exp`` (nats)."""


def group_advantage(reward_B: Float[Tensor, "B"], group_B: Int[Tensor, "B"], scale_by_std: bool) -> Float[Tensor, "B"]:
    """A = (R - mean) / (std + 1e-6) within the group, sample std; or A = R - mean (Dr.GRPO, arXiv 2503.20783).

    Args:
        reward_B: rewards.
        group_B: group of each rollout, integers from 0; any order.
        scale_by_std: divide by the group's standard deviation.

    Returns:
        advantage_B; exactly 0 where a group's rewards are all equal.
    """
    groups = int(group_B.max()) + 1 if len(group_B) else 0

    def per_group(values_B: Tensor) -> Tensor:
        return torch.zeros(groups, dtype=values_B.dtype, device=values_B.device).index_add(0, group_B, values_B)

    size = per_group(torch.ones_like(reward_B))
    centred = reward_B - (per_group(reward_B) / size)[group_B]
    low = torch.full_like(size, torch.inf).scatter_reduce(0, group_B, reward_B, "amin")
    high = torch.full_like(size, -torch.inf).scatter_reduce(0, group_B, reward_B, "amax")
    centred = torch.where((high == low)[group_B], torch.zeros_like(centred), centred)
    if not scale_by_std:
        return centred
    std = (per_group(centred.square()) / (size - 1).clamp(min=1)).sqrt()
    return centred / (std[group_B] + 1e-6)


@dataclass
class GroupAdvantage(Advantage):
    """A rollout against the others of its prompt."""

    scale_by_std: bool = key("divide a group's advantages by their standard deviation")

    def __call__(self, signals: Signals) -> Tensor:
        """advantage_B."""
        return group_advantage(signals.reward_B, signals.group_B, self.scale_by_std)


def policy_ratio(logp: Float[Tensor, "*n"], logp_old: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """rho = pi / pi_old, the log gap clamped; any shape."""
    return (logp - logp_old).clamp(-MAX_LOG_GAP, MAX_LOG_GAP).exp()


def clipped_loss(
    logp_BT: Float[Tensor, "B T"],
    logp_old_BT: Float[Tensor, "B T"],
    advantage_BT: Float[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "B T"]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) per token (PPO's surrogate; DAPO's two bounds)."""
    ratio = policy_ratio(logp_BT, logp_old_BT)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantage_BT, clipped * advantage_BT)


@dataclass
class ClippedLoss(PolicyLoss):
    """The trust region of GRPO and all methods that keep it; its bounds are ``train.clip_low`` and ``clip_high``."""

    train_keys = ("clip_low", "clip_high")

    clip_low: float = key("policy ratio may fall to 1 - clip_low", least=0, most=1)
    clip_high: float = key("policy ratio may rise to 1 + clip_high", least=0)

    def __call__(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """loss_BT."""
        return clipped_loss(logp_BT, logp_old_BT, advantage_BT, self.clip_low, self.clip_high)

    def clipped(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Ratio above the upper bound at A > 0, below the lower one at A < 0."""
        return self.held_back(policy_ratio(logp_BT, logp_old_BT), advantage_BT)

    def held_back(self, ratio_BT: Tensor, advantage_BT: Tensor) -> Tensor:
        """Bool_BT: tokens whose ratio is beyond the bound that their advantage would push it over."""
        above, below = ratio_BT > 1 + self.clip_high, ratio_BT < 1 - self.clip_low
        return (above & (advantage_BT > 0)) | (below & (advantage_BT < 0))
