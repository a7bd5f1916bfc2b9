"""RLCSD (arXiv 2606.11709): what a correct sibling makes likely and wrong ones do not.

e_t = log P_T(y_t | correct) - log mean_k P_T(y_t | wrong_k)        K wrong siblings at most, never the rollout itself
r_t = clip(scale tanh(e_t / temperature), +-limit),   selected where |r_t| > threshold
A_t = max(0, A + r_t)  if A >= 0,  else  min(0, A + r_t)
a rollout's loss = mean over its unselected tokens + weight * mean over its selected ones, an empty part omitted
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.contexts import Context, Sibling
from rlrt.methods.grpo import MAX_LOG_GAP
from rlrt.methods.method import Credit
from rlrt.methods.signals import Credited, Signals, TeacherSignal


def contrast(correct: TeacherSignal, wrong: Sequence[TeacherSignal]) -> tuple[Tensor, Tensor]:
    """e_BT, and bool_B: the rollouts that have a correct context and at least one wrong one; e is 0 for the others."""
    stacked_KBT = torch.stack([w.logp_BT for w in wrong])
    has_KB = torch.stack([w.has_B for w in wrong])
    masked_KBT = stacked_KBT.masked_fill(~has_KB[:, :, None], -torch.inf)
    has_B = correct.has_B & has_KB.any(0)
    count_B1 = has_KB.sum(0).clamp(min=1).to(stacked_KBT.dtype)[:, None]
    mean_BT = masked_KBT.logsumexp(0) - count_B1.log()
    return torch.where(has_B[:, None], correct.logp_BT - mean_BT, torch.zeros_like(correct.logp_BT)), has_B


def contrastive_reward(
    contrast_BT: Float[Tensor, "B T"], scale: float, temperature: float, limit: float
) -> Float[Tensor, "B T"]:
    """clip(scale tanh(e / temperature), +-limit)."""
    bounded = contrast_BT.clamp(-MAX_LOG_GAP, MAX_LOG_GAP)
    return (scale * torch.tanh(bounded / temperature)).clamp(-limit, limit)


def same_sign_sum(advantage_BT: Float[Tensor, "B T"], reward_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """A + r, kept on the side of zero that A is on (A = 0 counts as positive)."""
    total = advantage_BT + reward_BT
    return torch.where(advantage_BT >= 0, total.clamp(min=0), total.clamp(max=0))


@dataclass
class ContrastiveCredit(Credit):
    """RLCSD's credit."""

    needs_teacher = True
    multiplicative = False

    rlcsd_wrong: int = key("wrong siblings contrasted with, at most", least=1, most=1024)
    rlcsd_scale: float = key("largest reward of a token before the limit", least=0)
    rlcsd_temperature: float = key("contrast at which tanh bends", "nats", above=0)
    rlcsd_limit: float = key("bound of a token's reward", least=0)
    rlcsd_threshold: float = key("a token whose reward is larger in size is selected", least=0)
    rlcsd_selected_weight: float = key("weight of the mean over selected tokens", least=0)

    def contexts(self) -> Sequence[Context]:
        """A correct sibling, and the first K wrong ones."""
        return (Sibling(correct=True), *(Sibling(correct=False, number=k) for k in range(self.rlcsd_wrong)))

    def teacher_rows(self, advantage_B: Tensor, signals: Signals) -> Tensor:
        """All rollouts, unless the scale is 0."""
        return signals.mask_BT.any(1) & (self.rlcsd_scale > 0)

    def __call__(self, advantage_B: Tensor, signals: Signals) -> Credited:
        """A and r together, and which tokens were selected."""
        plain_BT = advantage_B[:, None] * signals.mask_BT
        if len(signals.teachers) < 2:
            return Credited(plain_BT)
        contrast_BT, has_B = contrast(signals.teachers[0], signals.teachers[1:])
        where_BT = signals.mask_BT & has_B[:, None]
        reward_BT = (
            contrastive_reward(contrast_BT, self.rlcsd_scale, self.rlcsd_temperature, self.rlcsd_limit) * where_BT
        )
        select_BT = (reward_BT.abs() > self.rlcsd_threshold) & where_BT
        total_BT = torch.where(where_BT, same_sign_sum(plain_BT, reward_BT), plain_BT)
        metrics = {"rlcsd/contrasted_share": float(has_B.double().mean())}
        if bool(where_BT.any()):
            metrics["rlcsd/selected_share"] = float(select_BT[where_BT].double().mean())
            metrics["rlcsd/contrast_mean"] = float(contrast_BT[where_BT].double().mean())
        return Credited(total_BT, select_BT, self.rlcsd_selected_weight, metrics)
