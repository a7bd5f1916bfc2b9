"""SDPO (arXiv 2601.20802): distil the teacher's distribution into the student at every token of its own rollouts.

    M   = (1 - a) S + a T                                     S = pi_S, T = sg pi_T
    div = a KL(T || M) + (1 - a) KL(S || M);   a = 0: KL(T || S),  a = 1: KL(S || T)
    L   = mean over tokens of rollouts with a teacher of  sg(min(pi / pi_old, c)) div

The support is the current student's top-k with true log-probabilities and one bucket for the tail, not renormalised;
or the whole vocabulary. Identity: -grad KL(S || T) = E_S[(log T - log S) grad log S].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.method import Auxiliary
from rlrt.methods.signals import Distributions


def with_tail(logp_NV: Float[Tensor, "N V"], top_NK: Int[Tensor, "N K"]) -> Float[Tensor, "N K+1"]:
    """Log-probabilities of the chosen tokens and, last, of all others together; (N, K + 1).

    The tail is log(1 - sum of the chosen), the sum kept below 1 by 1e-7 in log space so that it stays finite.
    """
    chosen = logp_NV.gather(-1, top_NK)
    total = chosen.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([chosen, torch.log(-torch.expm1(total))], -1)


def kl(p_logp_NV: Float[Tensor, "N V"], q_logp_NV: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
    """KL(p || q) = sum_v p (log p - log q), nats; a token of p = 0 contributes 0."""
    gap = torch.where(p_logp_NV == -torch.inf, torch.zeros_like(p_logp_NV), p_logp_NV - q_logp_NV)
    return (p_logp_NV.exp() * gap).sum(-1)


def divergence(
    student_logp_NV: Float[Tensor, "N V"], teacher_logp_NV: Float[Tensor, "N V"], alpha: float
) -> Float[Tensor, "N"]:
    """Generalised Jensen-Shannon divergence as in the module's text, nats; gradient through the student alone.

    Args:
        student_logp_NV, teacher_logp_NV: log-probabilities on one support.
        alpha: 0 gives KL(T || S) (forward), 1 gives KL(S || T) (reverse), between them the mixture form.
    """
    teacher_logp_NV = teacher_logp_NV.detach()
    if alpha == 0.0:
        return kl(teacher_logp_NV, student_logp_NV)
    if alpha == 1.0:
        return kl(student_logp_NV, teacher_logp_NV)
    mixture_NV = torch.logaddexp(student_logp_NV + math.log(1 - alpha), teacher_logp_NV + math.log(alpha))
    return alpha * kl(teacher_logp_NV, mixture_NV) + (1 - alpha) * kl(student_logp_NV, mixture_NV)


@dataclass
class Distillation(Auxiliary):
    """SDPO's dense loss."""

    needs_teacher = True
    has_ratio = True

    distill_alpha: float = key(
        "0: KL(teacher||student), 1: KL(student||teacher), between: Jensen-Shannon", least=0, most=1
    )
    distill_top_k: int = key(
        "the student's most likely tokens compared, the rest in one bucket; 0: all", "tokens", least=0
    )
    distill_ratio_cap: float = key("upper bound of the importance ratio pi / pi_old", above=0)

    def __call__(self, distributions: Distributions) -> Tensor:
        """The divergence at each token, times the capped ratio."""
        student, teacher = distributions.logp_NV, distributions.teacher_logp_NV
        if teacher is None:
            raise AssertionError("the loop gives teacher distributions to a loss that declares needs_teacher")
        if 0 < self.distill_top_k < student.shape[-1]:
            top = student.detach().topk(self.distill_top_k, -1).indices
            student, teacher = with_tail(student, top), with_tail(teacher, top)
        return distributions.ratio_N.detach().clamp(max=self.distill_ratio_cap) * divergence(
            student, teacher, self.distill_alpha
        )
