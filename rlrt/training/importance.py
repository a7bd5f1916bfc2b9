"""Importance weights of rollouts that an engine with weights or arithmetic of its own sampled.

The trainer's probabilities of the sampled tokens differ from the sampler's, by arithmetic and, under ``train.sample_ahead``,
by older weights. With log r_t = log pi_old(y_t) - log pi_sampler(y_t) at the T tokens of a rollout:

    token ratio       r_t                              sequence ratio    R = prod_t r_t = exp(sum_t log r_t)
    geometric mean    G = exp(mean_t log r_t)

    weight            w_t = min(r_t, clip)             level=token     (TIS; Yao et al., On the Rollout-Training Mismatch
                                                                        in Modern RL Systems, 2025)
                      w_t = min(R, clip)               level=sequence
    token mask        w_t = 0 where r_t is outside token_bounds
    rejection         w_t = 0 at all t where R is outside sequence_bounds, G is outside geometric_bounds, or some r_t is
                      below veto                       (MIS; Liu, Li et al., When Speed Kills Stability, 2025)

Masks and rejections multiply the weight. A ratio that lies on a bound is inside, to rounding. A rollout with a token whose
log-probability the engine gave as NaN or infinite is always rejected: its ratio is not known. Groups, advantages and
denominators count rejected rollouts and masked tokens as if they were there: they only add nothing to the gradient.

Other projects' names: verl ``rollout_is`` (level), ``rollout_rs`` (token, sequence, geometric) and
``rollout_token_veto_threshold``; prime-rl ``token_mask_low/high``, ``sequence_mask_low/high`` and ``geo_mask_low/high``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlrt.methods.grpo import MAX_LOG_GAP
from rlrt.methods.signals import Signals

SLACK = 1e-6
"""Nats by which a log ratio may miss a bound, for rounding."""


@dataclass(frozen=True)
class Rule:
    """How ratios become weights; see the module.

    Attributes:
        clip: the largest weight; None: weights are 1 where nothing masks.
        level: ``token`` or ``sequence``: the ratio that is the weight.
        token_bounds, sequence_bounds, geometric_bounds: (low, high) of each ratio; None: none.
        veto: a token's ratio below this rejects its rollout; None: none does.
    """

    clip: float | None = None
    level: str = "token"
    token_bounds: tuple[float, float] | None = None
    sequence_bounds: tuple[float, float] | None = None
    geometric_bounds: tuple[float, float] | None = None
    veto: float | None = None

    @classmethod
    def of(cls, train: Any, clip: float | None) -> Rule:
        """The rule of the config section ``train`` and of ``engine.importance_clip``."""

        def pair(bounds: list[float] | None) -> tuple[float, float] | None:
            return None if bounds is None else (bounds[0], bounds[1])

        return cls(
            clip,
            train.importance_level,
            pair(train.importance_token_bounds),
            pair(train.importance_sequence_bounds),
            pair(train.importance_geometric_bounds),
            train.importance_veto,
        )


@dataclass(frozen=True)
class Ratios:
    """The ratios of B rollouts, as logarithms, nats; float64.

    Attributes:
        log_BT: of the tokens; 0 outside the mask and where the sampler's log-probability is not finite.
        log_sequence_B: of the product; 0 for a rollout without tokens.
        log_geometric_B: of the geometric mean.
        known_B: bool; False where the engine gave some log-probability as NaN or infinite.
    """

    log_BT: Tensor
    log_sequence_B: Tensor
    log_geometric_B: Tensor
    known_B: Tensor


@dataclass(frozen=True)
class Weights:
    """The importance weights of B rollouts; without gradient.

    Attributes:
        ratio_BT: min(ratio, clip) by the rule's level; 1 outside the mask.
        keep_BT: bool; False at tokens that are masked, and at all tokens of a rejected rollout.
        rejected_B: bool.
    """

    ratio_BT: Tensor
    keep_BT: Tensor
    rejected_B: Tensor

    def full(self) -> Tensor:
        """weight_BT, masks and rejections included."""
        return torch.where(self.keep_BT, self.ratio_BT, 0.0)


def at_this_moment(rule: Rule, signals: Signals, logp_N: Tensor) -> Tensor:
    """Weights of a pass's tokens for the terms of the loss that have no policy ratio, where that ratio corrects for the sampler
    (``train.old_logp=sampler``): min(pi / pi_sampler, clip) at the weights of this moment. Else 1, as the tokens have theirs.

    Args:
        signals: of the rollouts of the pass.
        logp_N: the policy's log-probabilities at their N tokens; no gradient flows into the weights.
    """
    if signals.sampler_logp_BT is None or signals.old_logp_BT is None or rule.clip is None:
        return torch.ones_like(logp_N)
    mask_BT, device = signals.mask_BT.to(logp_N.device), logp_N.device
    log_N = logp_N.detach() - signals.old_logp_BT.to(device)[mask_BT]
    return log_N.clamp(max=MAX_LOG_GAP).exp().clamp(max=rule.clip)


def ratios(logp_BT: Tensor, sampler_logp_BT: Tensor, mask_BT: Tensor) -> Ratios:
    """The ratios of every token, sequence and geometric mean.

    Args:
        logp_BT: the trainer's log-probabilities of the sampled tokens.
        sampler_logp_BT: the engine's.
        mask_BT: bool; the response tokens.
    """
    finite_BT = sampler_logp_BT.isfinite()
    log_BT = (logp_BT.detach() - sampler_logp_BT).double()
    log_BT = torch.where(mask_BT & finite_BT, log_BT, torch.zeros_like(log_BT))
    total_B = log_BT.sum(1)
    return Ratios(log_BT, total_B, total_B / mask_BT.sum(1).clamp(min=1), (finite_BT | ~mask_BT).all(1))


def weights(
    rule: Rule,
    logp_BT: Tensor,
    sampler_logp_BT: Tensor,
    mask_BT: Tensor,
) -> Weights:
    """The importance weights of rollouts; for the arguments see ``ratios``.

    Each rollout has its own, so they do not depend on how a step is cut. A trainer's log-probability that is NaN stays one.
    """
    found = ratios(logp_BT, sampler_logp_BT, mask_BT)
    rejected_B = rejections(rule, found)
    keep_BT = ~(outside(found.log_BT, rule.token_bounds) & mask_BT) & ~rejected_B[:, None]
    ratio_BT = torch.ones_like(logp_BT)
    if rule.clip is not None:
        log_BT = found.log_BT if rule.level == "token" else found.log_sequence_B[:, None].expand_as(found.log_BT)
        clipped_BT = log_BT.clamp(max=MAX_LOG_GAP).exp().clamp(max=rule.clip).to(ratio_BT.dtype)
        ratio_BT = torch.where(mask_BT, clipped_BT, ratio_BT)
    return Weights(ratio_BT, keep_BT, rejected_B)


def rejections(rule: Rule, found: Ratios) -> Tensor:
    """Bool_B: the rollouts that add nothing to the gradient."""
    rejected_B = ~found.known_B
    rejected_B = rejected_B | outside(found.log_sequence_B, rule.sequence_bounds)
    rejected_B = rejected_B | outside(found.log_geometric_B, rule.geometric_bounds)
    if rule.veto is not None:
        rejected_B = rejected_B | (found.log_BT < math.log(rule.veto) - SLACK).any(1)
    return rejected_B


def outside(log_ratio: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """True where a ratio lies outside its bounds; never for NaN, which stays to be seen in the gradient."""
    if bounds is None:
        return torch.zeros_like(log_ratio, dtype=torch.bool)
    low, high = (math.log(bound) if bound > 0 else -math.inf for bound in bounds)
    return (log_ratio < low - SLACK) | (log_ratio > high + SLACK)


def metrics(rule: Rule, logp_BT: Tensor, sampler_logp_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """The distance between the sampler's and the trainer's probabilities, and the effect of the rule; for the arguments see
    ``ratios``. Of rollouts whose log-probabilities are all finite, where there are any."""
    found, given = ratios(logp_BT, sampler_logp_BT, mask_BT), weights(rule, logp_BT, sampler_logp_BT, mask_BT)
    known_BT = mask_BT & found.known_B[:, None]
    numbers = {
        "sampler/not_finite_share": share(~found.known_B),
        "sampler/rejected_share": share(given.rejected_B),
        "sampler/masked_share": share(~given.keep_BT[mask_BT]),
    }
    if not bool(known_BT.any()):
        return numbers
    gap_N = found.log_BT[known_BT]
    ratio_N = gap_N.exp()
    numbers |= {
        "sampler/logp_gap_abs_mean": float(gap_N.abs().mean()),
        "sampler/logp_gap_abs_max": float(gap_N.abs().max()),
        "sampler/kl": float((ratio_N - 1 - gap_N).mean()),
    }
    by_level = {"token": gap_N, "sequence": found.log_sequence_B[found.known_B]}[rule.level]
    numbers["sampler/importance_mean"] = float(by_level.clamp(max=MAX_LOG_GAP).exp().mean())
    numbers["sampler/importance_clipped_share"] = share(
        outside(by_level, None if rule.clip is None else (0.0, rule.clip))
    )
    for name, log_B in (("sequence", found.log_sequence_B), ("geometric", found.log_geometric_B)):
        ratio = log_B[found.known_B].clamp(-MAX_LOG_GAP, MAX_LOG_GAP).exp()
        numbers[f"sampler/{name}_ratio_mean"] = float(ratio.mean())
        numbers[f"sampler/{name}_ratio_min"] = float(ratio.min())
        numbers[f"sampler/{name}_ratio_max"] = float(ratio.max())
    return numbers


def share(flags: Tensor) -> float:
    """Part of the flags that is True; 0 of none."""
    return float(flags.double().mean()) if flags.numel() else 0.0
