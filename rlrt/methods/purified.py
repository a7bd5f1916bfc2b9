"""Purified OPSD (arXiv 2607.02234): distil what the question adds to the reference, without the reference's wording.

    P_S: the student, shown the question        P_T: the teacher, shown the question and the reference
    P_R: the teacher, shown the same reference without the question
    target = softmax(log sg P_B + gamma (log P_T - log P_R))        over the student's top k and one bucket for the rest
    L      = mean over tokens of rollouts with a teacher of  KL between target and P_S
    P_B    = P_S, or what the teacher predicts that is shown the question alone (``purified_base``)

log P_T - log P_R is the pointwise mutual information of a token and the question, given the reference and what was written
before: a word that the reference alone makes likely has none. On P_S the target is always gamma times that ahead of the
student: gamma = 0 makes it the student itself, and the gradient 0, but gamma > 0 has no end while the two teachers differ. On a
frozen teacher's own view of the question it stands still, and a student can reach it. The paper says that such a target is made
and distilled; its exact form was not at hand, so base, gamma, support and the direction of the KL are keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.contexts import Context, Nothing, WithoutQuestion
from rlrt.methods.grpo import MAX_LOG_GAP
from rlrt.methods.method import Auxiliary
from rlrt.methods.sdpo import divergence, with_tail
from rlrt.methods.signals import Distributions


def purified_target(
    base_logp_NV: Float[Tensor, "N V"],
    teacher_logp_NV: Float[Tensor, "N V"],
    alone_logp_NV: Float[Tensor, "N V"],
    gamma: float,
) -> Float[Tensor, "N V"]:
    """log softmax(log P_B + gamma (log P_T - log P_R)), nats; without gradient.

    Args:
        base_logp_NV, teacher_logp_NV, alone_logp_NV: log P_B, log P_T and log P_R on one support.
        gamma: how far the target goes along the gap, which is held within +-20 nats; where P_T = P_R the gap is 0, also at 0.
    """
    same_NV = teacher_logp_NV == alone_logp_NV
    gap_NV = torch.where(same_NV, 0.0, teacher_logp_NV - alone_logp_NV).clamp(-MAX_LOG_GAP, MAX_LOG_GAP)
    return (base_logp_NV + gamma * gap_NV).detach().log_softmax(-1)


@dataclass
class PurifiedDistillation(Auxiliary):
    """Purified OPSD's dense loss."""

    needs_teacher = True

    purified_gamma: float = key("how far the target goes along log P_T - log P_R; 0: the target is the base", least=0)
    purified_base: str = key(
        "whose view of the question the target starts from: the student's now, or the teacher's",
        choices=("student", "teacher"),
    )
    purified_alpha: float = key(
        "0: KL(target||student), 1: KL(student||target), between: Jensen-Shannon", least=0, most=1
    )
    purified_top_k: int = key(
        "the student's most likely tokens compared, the rest in one bucket; 0: all", "tokens", least=0
    )

    def contexts_beside(self) -> Sequence[Context]:
        """The teacher's text without the question; the question without a text, where the target starts from that."""
        return (WithoutQuestion(), Nothing()) if self.purified_base == "teacher" else (WithoutQuestion(),)

    def __call__(self, distributions: Distributions) -> Tensor:
        """The divergence from the target at each token, nats."""
        student, teacher = distributions.logp_NV, distributions.teacher_logp_NV
        if teacher is None:
            raise AssertionError("the loop gives teacher distributions to a loss that declares needs_teacher")
        views = [student, teacher, *distributions.beside_logp_NV]
        if 0 < self.purified_top_k < student.shape[-1]:
            top = student.detach().topk(self.purified_top_k, -1).indices
            views = [with_tail(view, top) for view in views]
        student, teacher, alone, *base = views
        target = purified_target(base[0] if base else student, teacher, alone, self.purified_gamma)
        return divergence(student, target, self.purified_alpha)
