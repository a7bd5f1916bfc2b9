"""A supervised start: the likelihood of the data's own solutions, in the slots of a method.

    loss of a token = -log P_S(y_t),    y the response that ``response_template`` makes of the data's texts

Under ``train.aggregation=token`` the loss of a step is the mean over its response tokens: the cross-entropy that transformers
computes from ``labels`` that are -100 on the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlrt.keys import key
from rlrt.methods.declared import Alarm
from rlrt.methods.method import Advantage, PolicyLoss
from rlrt.methods.signals import Signals


@dataclass
class Taught(Advantage):
    """Every response is the data's own, and weighs 1, whatever the verifier says of it."""

    needs_group = False
    alarms = (
        Alarm(
            "reward/correct_share",
            "the verifier takes fewer than half of the responses that are taught for right; give them the form that it wants "
            "by method.response_template",
            below=0.5,
        ),
    )

    response_template: str = key(
        "what is taught as the response: {solution} and {answer} stand for the data's texts, without white space around them; "
        "the token that ends a response is put behind it"
    )

    def taught(self) -> str:
        """The template of the responses."""
        return self.response_template

    def __call__(self, signals: Signals) -> Tensor:
        """advantage_B."""
        return torch.ones_like(signals.reward_B)


@dataclass
class Likelihood(PolicyLoss):
    """The negative log-likelihood, nats, times the token's advantage; without a policy ratio, so without a trust region."""

    def __call__(self, logp_BT: Tensor, logp_old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """loss_BT."""
        return -logp_BT * advantage_BT
