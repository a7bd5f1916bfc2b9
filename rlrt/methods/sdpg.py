"""SDPG (arXiv 2606.04036): GRPO's loss, a distillation of good rollouts that rises and falls, and a KL to the step-0 model.

    L       = L_out + beta(k) L_OPD+ + alpha L_KL
    L_OPD+  = sum over rollouts with A > 0 and their tokens of  KL(p_t || sg q_t)  /  tokens of all rollouts         eq. 3.5
    beta(k) = beta min(1, k / (w K)) min(1, (K - k) / (d K)),   k = 1 ... K                                  section 3.5.2

p_t is the student's distribution over the whole vocabulary, q_t that of the same model at the same weights, shown the
reference. L_out is GRPO's loss with advantages divided by their standard deviation, L_KL the penalty of ``train.kl_coef``: its
estimator k2 is the paper's unnormalised reverse KL (its default), k3 the unnormalised forward one up to a constant.
beta = alpha = 0 is GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.declared import Curve
from rlrt.methods.method import Auxiliary
from rlrt.methods.sdpo import kl
from rlrt.methods.signals import Distributions, Signals


def rise_and_fall(peak: float, rise: float, fall: float, step: int, steps: int) -> float:
    """peak * min(1, step / (rise * steps)) * min(1, (steps - step) / (fall * steps)): 0 at the last step unless ``fall`` is 0.

    Where the two overlap the largest value is below ``peak``, as in the paper.

    Args:
        rise, fall: shares of all steps; 0: no rise, or no fall.
        step: the update, from 1.
        steps: all updates of the run.
    """
    risen = min(1.0, step / (rise * steps)) if rise > 0 else 1.0
    left = min(1.0, max(0, steps - step) / (fall * steps)) if fall > 0 else 1.0
    return peak * risen * left


@dataclass
class GatedDistillation(Auxiliary):
    """SDPG's dense loss: KL(student || teacher) on rollouts with a positive advantage."""

    needs_teacher = True
    shared_denominator = True
    train_keys = ("steps",)
    curves = (Curve("sdpg/beta", "beta", "coefficient beta(k) of the distillation", 0.0),)

    steps: int = key("updates of the run", "steps")
    sdpg_beta: float = key("largest coefficient beta of the distillation; 0: none", least=0)
    sdpg_rise: float = key("share of the run's steps over which beta rises from 0; 0: none", least=0, most=1)
    sdpg_fall: float = key("share of the run's steps over which beta falls to 0 at the end; 0: none", least=0, most=1)
    sdpg_gate: str = key(
        "which rollouts are distilled: those with a positive advantage, or all", choices=("positive", "all")
    )
    _beta: float = field(default=0.0, init=False)

    def teacher_rows(self, signals: Signals) -> Tensor:
        """Rollouts that pass the gate; none where beta is 0."""
        if self.sdpg_beta == 0.0:
            return torch.zeros_like(signals.correct_B)
        if self.sdpg_gate == "all":
            return torch.ones_like(signals.correct_B)
        if signals.advantage_B is None:
            raise AssertionError("the loop knows the advantages before it asks who wants a teacher")
        return signals.advantage_B > 0

    def factor(self, step: int) -> float:
        """beta(k)."""
        self._beta = rise_and_fall(self.sdpg_beta, self.sdpg_rise, self.sdpg_fall, step, self.steps)
        return self._beta

    def __call__(self, distributions: Distributions) -> Tensor:
        """KL(p_t || sg q_t) at each token, nats."""
        if distributions.teacher_logp_NV is None:
            raise AssertionError("the loop gives teacher distributions to a loss that declares needs_teacher")
        return kl(distributions.logp_NV, distributions.teacher_logp_NV.detach())

    def metrics(self) -> dict[str, float]:
        """beta(k) of the step."""
        return {"sdpg/beta": self._beta}
