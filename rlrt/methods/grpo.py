"""GRPO (arXiv 2402.03300): group advantages and the clipped policy loss. Dr.GRPO and DAPO are choices of its keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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


def in_mixed_groups(
    advantage_B: Float[Tensor, "B"], correct_B: Bool[Tensor, "B"], group_B: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """The advantages, 0 where all rollouts of a group are correct or all are wrong: there, shaped rewards alone differ.

    DAPO (arXiv 2503.14476, eq. 11) trains on groups with 0 < correct < G alone.
    """
    right_B = torch.bincount(group_B, weights=correct_B.double())[group_B]
    mixed_B = (right_B > 0) & (right_B < torch.bincount(group_B)[group_B])
    return torch.where(mixed_B, advantage_B, torch.zeros_like(advantage_B))


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
    clip_dual: float | None = None,
) -> Float[Tensor, "B T"]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) per token (PPO's surrogate; DAPO's two bounds); with ``clip_dual``
    as ``surrogate`` says."""
    return surrogate(policy_ratio(logp_BT, logp_old_BT), advantage_BT, clip_low, clip_high, clip_dual)


def surrogate(
    ratio_BT: Float[Tensor, "B T"],
    advantage_BT: Float[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
    clip_dual: float | None,
) -> Float[Tensor, "B T"]:
    """The clipped loss of a ratio. At A < 0 it grows with the ratio without end; ``clip_dual`` ends it at -clip_dual A, beyond
    which a token has no gradient (Dual-clip PPO, arXiv 1912.09729)."""
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    loss_BT = -torch.minimum(ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    if clip_dual is None:
        return loss_BT
    return torch.where(advantage_BT < 0, torch.minimum(loss_BT, -clip_dual * advantage_BT), loss_BT)


@dataclass
class ClippedLoss(PolicyLoss):
    """The trust region of GRPO and all methods that keep it; its bounds are ``train.clip_low``, ``clip_high`` and
    ``clip_dual``."""

    train_keys = ("clip_low", "clip_high", "clip_dual")

    clip_low: float = key("policy ratio may fall to 1 - clip_low", least=0, most=1)
    clip_high: float = key("policy ratio may rise to 1 + clip_high", least=0)
    clip_dual: float | None = key("policy ratio at a negative advantage may rise to this; null: without end", above=1)

    def __call__(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """loss_BT."""
        ratio_BT = self.ratio(logp_BT, logp_old_BT, mask_BT)
        return surrogate(ratio_BT, advantage_BT, self.clip_low, self.clip_high, self.clip_dual)

    def ratio(self, logp_BT: Tensor, logp_old_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """ratio_BT: what the bounds are about, pi / pi_old of each token."""
        return policy_ratio(logp_BT, logp_old_BT)

    def clipped(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Ratio above the upper bound at A > 0; below the lower one, or above the dual one, at A < 0."""
        ratio_BT = self.ratio(logp_BT, logp_old_BT, mask_BT)
        above_BT, beyond_BT = ratio_BT > 1 + self.clip_high, ratio_BT < 1 - self.clip_low
        if self.clip_dual is not None:
            beyond_BT = beyond_BT | (ratio_BT > self.clip_dual)
        return (above_BT & (advantage_BT > 0)) | (beyond_BT & (advantage_BT < 0))
