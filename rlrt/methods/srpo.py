"""SRPO (arXiv 2604.02288): correct rollouts learn by GRPO, wrong ones with a correct sibling by self-distillation.

    wrong and with a teacher:   L_t = w_t div_t,   w_t = exp(-beta H_T,t) / mean of the same over these tokens
    all others:                 GRPO's loss
    one denominator: all tokens of the mini-batch

Where the teacher itself is unsure (entropy H_T), it teaches less. ``div`` is SDPO's divergence (``rlrt.methods.sdpo``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.sdpo import Distillation
from rlrt.methods.signals import Signals, TeacherSignal


def confidence_weights(
    entropy_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"], beta: float
) -> Float[Tensor, "B T"]:
    """exp(-beta H), divided by its mean over the mask; zero outside it. beta = 0 gives 1 everywhere.

    The least entropy is taken off before ``exp``, which changes no quotient: its own weight is then exp(0), so the mean is
    never 0, however large beta H is.

    Args:
        entropy_BT: the teacher's entropy, nats.
        mask_BT: the routed tokens; at least one is True.
        beta: 1 / nats.
    """
    least = entropy_BT[mask_BT].double().min()
    weight_BT = torch.where(mask_BT, (-beta * (entropy_BT.double() - least)).exp(), 0.0)
    return (weight_BT * mask_BT.sum() / weight_BT.sum()).to(entropy_BT.dtype)


@dataclass
class RoutedDistillation(Distillation):
    """SDPO's dense loss on wrong rollouts alone, by the teacher's confidence."""

    exclusive = True
    shared_denominator = True
    weighs_tokens = True

    srpo_beta: float = key("how fast a token's weight falls with the teacher's entropy there", "1/nats", least=0)

    def teacher_rows(self, signals: Signals) -> Tensor:
        """The wrong rollouts."""
        return ~signals.correct_B

    def token_weights(self, teacher: TeacherSignal, mask_BT: Tensor) -> Tensor:
        """w_t, of mean 1 over the routed tokens."""
        return confidence_weights(teacher.entropy_BT, mask_BT, self.srpo_beta)
