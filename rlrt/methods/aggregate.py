"""The weight of each token in a mini-batch's loss, and the KL penalty to the step-0 policy."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from rlrt.methods.grpo import MAX_LOG_GAP


def token_weights(
    mask_BT: Bool[Tensor, "B T"],
    aggregation: str,
    max_new_tokens: int,
    select_BT: Bool[Tensor, "B T"] | None = None,
    select_weight: float = 1.0,
) -> Float[Tensor, "B T"]:
    """Weight of every token so that the loss of a mini-batch is the weighted sum of its tokens' losses.

    ``token``: all tokens alike (DAPO, arXiv 2503.14476); ``sequence``: the mean of per-sequence means (GRPO);
    ``constant``: sum / (B * max_new_tokens) (Dr.GRPO). With ``select_BT`` each rollout's loss is the mean over its
    unselected tokens plus ``select_weight`` times the mean over its selected ones, then the mean over rollouts.

    Args:
        mask_BT: bool; the response tokens of **all** rollouts of the mini-batch, skipped ones included.
    """
    mask = mask_BT.double()
    rollouts = max(1, len(mask))
    if select_BT is not None:
        chosen_BT, rest_BT = (mask_BT & select_BT).double(), (mask_BT & ~select_BT).double()
        chosen_BT = select_weight * chosen_BT / chosen_BT.sum(1, keepdim=True).clamp(min=1)
        return (chosen_BT + rest_BT / rest_BT.sum(1, keepdim=True).clamp(min=1)) / rollouts
    if aggregation == "token":
        return mask / mask.sum().clamp(min=1)
    if aggregation == "sequence":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / rollouts
    return mask / (rollouts * max_new_tokens)


def kl_penalty(logp: Float[Tensor, "*n"], reference_logp: Float[Tensor, "*n"], estimator: str) -> Float[Tensor, "*n"]:
    """Estimate of KL(pi || pi_ref) at sampled tokens: k1 = -r, k2 = r^2 / 2, k3 = e^r - 1 - r with r = log(ref / pi).

    As a loss on rollouts of pi itself, k2's gradient is that of the KL in expectation; k1's own is zero in expectation, so
    k1 has k2's gradient here (straight through); k3's is biased, and what most code bases use.
    """
    r = (reference_logp - logp).clamp(-MAX_LOG_GAP, MAX_LOG_GAP)
    if estimator == "k1":
        square = r.square() / 2
        return -r.detach() + square - square.detach()
    if estimator == "k2":
        return r.square() / 2
    return r.exp() - 1 - r
