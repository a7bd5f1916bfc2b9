"""OPSD (arXiv 2601.18734): per-token distillation of a frozen teacher that is shown the reference solution.

    L = mean over tokens of rollouts with a teacher of  sum_v min(p_T log(p_T / p_S), c)

The clip c (0.05) is on each vocabulary entry's term of KL(T || S), before the sum: single entries on which the teacher is far
surer than the student (style words) do not drown the rest. ``distill_token_clip`` bounds the sum instead, or besides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.method import Auxiliary
from rlrt.methods.signals import Distributions


def clipped_kl(
    student_logp_NV: Float[Tensor, "N V"], teacher_logp_NV: Float[Tensor, "N V"], point_clip: float
) -> Float[Tensor, "N"]:
    """sum_v min(p_T log(p_T / p_S), point_clip), nats; an entry of p_T = 0 adds 0. Gradient through the student alone."""
    teacher_logp_NV = teacher_logp_NV.detach()
    none = teacher_logp_NV == -torch.inf
    gap_NV = torch.where(none, torch.zeros_like(student_logp_NV), teacher_logp_NV - student_logp_NV)
    return (teacher_logp_NV.exp() * gap_NV).clamp(max=point_clip).sum(-1)


@dataclass
class ClippedDistillation(Auxiliary):
    """OPSD's dense loss."""

    needs_teacher = True

    distill_point_clip: float = key("upper bound of each vocabulary entry's term p_T log(p_T / p_S)", "nats", above=0)
    distill_token_clip: float | None = key("upper bound of a token's loss; null: none", "nats", above=0)

    def __call__(self, distributions: Distributions) -> Tensor:
        """The clipped divergence at each token."""
        student, teacher = distributions.logp_NV, distributions.teacher_logp_NV
        if teacher is None:
            raise AssertionError("the loop gives teacher distributions to a loss that declares needs_teacher")
        loss_N = clipped_kl(student, teacher, self.distill_point_clip)
        return loss_N if self.distill_token_clip is None else loss_N.clamp(max=self.distill_token_clip)
