"""The supervised start's two slots by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlrt.config.load import load
from rlrt.errors import UserError
from rlrt.methods.aggregate import token_weights
from rlrt.methods.sft import Likelihood, Taught
from tests.helpers import composed, method_of, settings, signals

F64 = torch.float64


def test_the_loss_of_two_tokens():
    """Logits (0, ln 3) and (ln 2, 0, ...): -log .25 and -log(2/3), so a mean of (ln 4 + ln 1.5) / 2 = ln 6 / 2.

    The gradient of the mean with respect to the first logits is (softmax - one-hot) / 2 = (.25 - 1, .75) / 2.
    """
    logits = torch.tensor([[0.0, math.log(3)], [math.log(2), 0.0]], dtype=F64, requires_grad=True)
    logp_BT = logits.log_softmax(-1)[:, 0][None]
    mask_BT = torch.ones(1, 2, dtype=torch.bool)
    taught = signals([0.0], [0], [2])
    advantage_BT = Taught("{solution}")(taught)[:, None] * mask_BT
    loss_BT = Likelihood()(logp_BT, torch.full((1, 2), 7.0, dtype=F64), advantage_BT, mask_BT)
    assert loss_BT.tolist()[0] == pytest.approx([math.log(4), math.log(1.5)], abs=1e-15)
    total = (loss_BT * token_weights(mask_BT, "token", 9)).sum()
    assert float(total.detach()) == pytest.approx(math.log(6) / 2, abs=1e-15)
    total.backward()
    assert logits.grad.flatten().tolist() == pytest.approx([-0.375, 0.375, -1 / 6, 1 / 6], abs=1e-15)


def test_what_the_verifier_says_changes_no_weight():
    made = method_of("sft")
    assert made.advantage(signals([1.0, 0.0, -3.0], [0, 1, 2], [1, 1, 1])).tolist() == [1.0, 1.0, 1.0]
    assert (made.needs_teacher, made.advantage.taught()) == (False, "{solution}")
    assert method_of("grpo").advantage.taught() is None


@pytest.mark.parametrize(
    "key",
    [
        "train.rollouts_per_prompt=8",
        "train.max_refills=1",
        "train.mixed_groups_only=true",
        "engine.temperature=0.7",
        "train.old_logp=sampler",
    ],
)
def test_what_has_no_meaning_without_sampling_is_refused(key):
    with pytest.raises(UserError, match=rf"^{key.split('=')[0]}: method sft learns the data's own responses"):
        settings("method=sft", key)
    load(composed(["method=sft"]))
