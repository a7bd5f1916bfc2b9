"""Purified OPSD (arXiv 2607.02234): distil what the question adds to the reference, without the reference's wording.

    P_S: the student, shown the question        P_T: the teacher, shown the question and the reference
    P_R: the teacher, shown the same reference without the question
    target = softmax(log sg P_S + gamma (log P_T - log P_R))        over the student's top k and one bucket for the rest
    L      = mean over tokens of rollouts with a teacher of  KL between target and P_S

log P_T - log P_R is the pointwise mutual information of a token and the question, given the reference and what was written
before: a word that the reference alone makes likely has none. gamma = 0 makes the target the student itself, and the gradient
0. The paper says that such a target is made and distilled; its exact form was not at hand, so gamma, the support and the
direction of the KL are keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.contexts import Context, WithoutQuestion
from rlrt.methods.grpo import MAX_LOG_GAP
from rlrt.methods.method import Auxiliary
from rlrt.methods.sdpo import divergence, with_tail
from rlrt.methods.signals import Distributions


def purified_target(
    student_logp_NV: Float[Tensor, "N V"],
    teacher_logp_NV: Float[Tensor, "N V"],
    alone_logp_NV: Float[Tensor, "N V"],
    gamma: float,
) -> Float[Tensor, "N V"]:
    """log softmax(log P_S + gamma (log P_T - log P_R)), nats; without gradient.

    Args:
        student_logp_NV, teacher_logp_NV, alone_logp_NV: log P_S, log P_T and log P_R on one support.
        gamma: how far the target goes along the gap, which is held within +-20 nats; where P_T = P_R the gap is 0, also at 0.
    """
    same_NV = teacher_logp_NV == alone_logp_NV
    gap_NV = torch.where(same_NV, 0.0, teacher_logp_NV - alone_logp_NV).clamp(-MAX_LOG_GAP, MAX_LOG_GAP)
    return (student_logp_NV + gamma * gap_NV).detach().log_softmax(-1)


@dataclass
class PurifiedDistillation(Auxiliary):
    """Purified OPSD's dense loss."""

    needs_teacher = True

    purified_gamma: float = key(
        "how far the target goes along log P_T - log P_R; 0: the target is the student", least=0
    )
    distill_alpha: float = key(
        "0: KL(target||student), 1: KL(student||target), between: Jensen-Shannon", least=0, most=1
    )
    distill_top_k: int = key(
        "the student's most likely tokens compared, the rest in one bucket; 0: all", "tokens", least=0
    )

    def contexts_beside(self) -> Sequence[Context]:
        """The teacher's text without the question."""
        return (WithoutQuestion(),)

    def __call__(self, distributions: Distributions) -> Tensor:
        """The divergence from the target at each token, nats."""
        student, teacher, (alone,) = (
            distributions.logp_NV,
            distributions.teacher_logp_NV,
            distributions.beside_logp_NV,
        )
        if teacher is None:
            raise AssertionError("the loop gives teacher distributions to a loss that declares needs_teacher")
        if 0 < self.distill_top_k < student.shape[-1]:
            top = student.detach().topk(self.distill_top_k, -1).indices
            student, teacher, alone = (with_tail(view, top) for view in (student, teacher, alone))
        return divergence(student, purified_target(student, teacher, alone, self.purified_gamma), self.distill_alpha)
