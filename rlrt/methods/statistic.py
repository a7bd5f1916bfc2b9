"""Statistics of the next-token distributions that a credit may ask for, one number at each response token.

A credit that declares them (``Credit.statistics``) finds them in ``signals.statistics`` (the student's) and in each
``signals.teachers[i].statistics`` (the teacher's), by the statistic itself. They are computed where the logits are, some
tokens at a time; the distributions are never kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Statistic:
    """One number of a distribution at each token. Instances are compared by value: equal ones are computed once."""

    def __call__(self, logp_CV: Tensor, token_C: Tensor) -> Tensor:
        """value_C, float32.

        Args:
            logp_CV: log-probabilities over the vocabulary, nats, at C response tokens.
            token_C: the sampled tokens.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__")


@dataclass(frozen=True)
class Rank(Statistic):
    """Number of tokens of the vocabulary that are more probable than the sampled one; 0: the sampled token is the most
    probable."""

    def __call__(self, logp_CV: Float[Tensor, "C V"], token_C: Int[Tensor, "C"]) -> Float[Tensor, "C"]:
        """rank_C."""
        return (logp_CV > logp_CV.gather(-1, token_C[:, None])).sum(-1).float()


@dataclass(frozen=True)
class Nucleus(Statistic):
    """1 where the sampled token is in the nucleus, the smallest set of most probable tokens with at least ``top_p``; else 0."""

    top_p: float

    def __call__(self, logp_CV: Float[Tensor, "C V"], token_C: Int[Tensor, "C"]) -> Float[Tensor, "C"]:
        """member_C: the tokens that are more probable than the sampled one do not reach ``top_p`` alone."""
        sampled_C1 = logp_CV.gather(-1, token_C[:, None])
        before_C = torch.where(logp_CV > sampled_C1, logp_CV.exp(), torch.zeros_like(logp_CV)).sum(-1)
        return (before_C < self.top_p).float()


@dataclass(frozen=True)
class Probability(Statistic):
    """The probability of one given token, whichever was sampled."""

    token_id: int

    def __call__(self, logp_CV: Float[Tensor, "C V"], token_C: Int[Tensor, "C"]) -> Float[Tensor, "C"]:
        """probability_C."""
        return logp_CV[:, self.token_id].exp().float()
