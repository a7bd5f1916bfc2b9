"""SDPG by hand, and through an update against the formula."""

from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.grpo import group_advantage
from rlrt.methods.sdpg import GatedDistillation, rise_and_fall
from rlrt.methods.signals import Distributions
from tests.helpers import method_of, settings, signals
from tests.training.test_update import close, gradient, world

F64 = torch.float64
KEYS = {"steps": 400, "sdpg_beta": 1e-3, "sdpg_rise": 0.125, "sdpg_fall": 0.875, "sdpg_gate": "positive"}


@pytest.mark.parametrize(
    ("step", "expected"),
    # 50 steps up and 350 down of 400, as published: 25/50 of it; all of it; (400 - 225)/350 and (400 - 393)/350; the end
    [(25, 0.5), (50, 1.0), (225, 0.5), (393, 0.02), (400, 0.0), (401, 0.0)],
)
def test_the_published_schedule_by_hand(step, expected):
    assert rise_and_fall(1.0, 0.125, 0.875, step, 400) == pytest.approx(expected, abs=1e-12)
    assert GatedDistillation(**KEYS).factor(step) == pytest.approx(1e-3 * expected, abs=1e-12)


def test_overlapping_windows_and_none_at_all():
    # 100 steps, up over all, down over all: at 50 each is a half
    assert rise_and_fall(2.0, 1.0, 1.0, 50, 100) == pytest.approx(0.5, abs=1e-12)
    assert [rise_and_fall(2.0, 0.0, 0.0, step, 100) for step in (1, 100)] == [2.0, 2.0]


def test_the_token_loss_is_the_reverse_kl_and_its_gradient_the_papers():
    """Proposition 3.1: the gradient of KL(p || sg q) is that of -E_p[sg(KL - log(p / q)) log p]."""
    # .5 log(.5/.25) + .5 log(.5/.75) = .5 log 2 + .5 log(2/3) = .1438
    student, teacher = (torch.log(torch.tensor([row], dtype=F64)) for row in ([0.5, 0.5], [0.25, 0.75]))
    term = GatedDistillation(**KEYS)
    value = term(Distributions(student, teacher, torch.ones(1, dtype=F64)))
    assert float(value) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-12)
    logits = torch.tensor([[0.3, -1.0, 0.2]], dtype=F64).requires_grad_()
    shown = torch.tensor([[1.0, 0.5, -0.5]], dtype=F64).requires_grad_()
    logp, q = logits.log_softmax(-1), shown.log_softmax(-1)
    term(Distributions(logp, q, torch.ones(1, dtype=F64))).sum().backward()
    assert shown.grad is None
    p = logp.detach()
    centred = (p.exp() * (p - q.detach())).sum() - (p - q.detach())
    (wanted,) = torch.autograd.grad(-(p.exp() * centred * logits.log_softmax(-1)).sum(), logits)
    assert torch.allclose(logits.grad, wanted, atol=1e-12)


def test_the_gate_reads_the_advantage():
    """Rewards 1, 0, 0 of one group and 1, 1 of another: one rollout alone has a positive advantage."""
    batch = signals([1.0, 0.0, 0.0, 1.0, 1.0], [0, 0, 0, 1, 1], [2, 2, 2, 2, 2])
    for gate, beta, wanted in (
        ("positive", 1e-3, [True, False, False, False, False]),
        ("all", 1e-3, [True] * 5),
        ("all", 0.0, [False] * 5),
    ):
        method = method_of("sdpg", f"method.sdpg_gate={gate}", f"method.sdpg_beta={beta}")
        batch.advantage_B = method.advantage(batch)
        assert method.teacher_rows(batch.advantage_B, batch).tolist() == wanted


def test_the_paper_values_are_the_defaults():
    made = settings("method=sdpg", "train.steps=400")
    (term,) = made.method.auxiliary
    assert (term.factor(50), term.factor(225)) == (1e-3, pytest.approx(5e-4))
    assert (made.train.kl_coef, made.train.kl_estimator) == (1e-3, "k2")
    assert (made.teacher.weights, made.method.advantage.scale_by_std) == ("live", True)


def by_hand(learner, rollouts, beta: float, alpha: float) -> dict[str, torch.Tensor]:
    """The gradient of SDPG's loss, one rollout at a time through the model's plain logits."""
    model, reference, builder = learner.policy.model, learner.reference, learner.builder
    advantage = group_advantage(
        torch.tensor([r.grade.reward for r in rollouts]), torch.tensor([r.group for r in rollouts]), True
    )
    tokens = sum(len(r.generation.token_ids) for r in rollouts)

    def logp_TV(of, prompt_ids, response):
        ids = torch.tensor([[*prompt_ids, *response]])
        return of(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)

    total = torch.zeros(())
    for r, a in zip(rollouts, advantage, strict=True):
        response = r.generation.token_ids
        student = logp_TV(model, r.prompt_ids, response)
        sampled = student[range(len(response)), response]
        total = total - (a * sampled).sum() / tokens
        with torch.no_grad():
            teacher = logp_TV(model, builder.teacher(r.prompt, r.prompt.solution), response)
            start = logp_TV(reference, r.prompt_ids, response)[range(len(response)), response]
        if a > 0:
            total = total + beta * (student.exp() * (student - teacher)).sum() / tokens
        total = total + alpha * 0.5 * ((sampled - start) ** 2).sum() / tokens
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


LOUD = ("method=sdpg", "method.sdpg_beta=4", "method.sdpg_rise=0.02", "method.sdpg_fall=1", "train.kl_coef=0.5")


def test_the_gradient_of_an_update_is_that_of_the_formula():
    """Step 1 of 150: beta(1) = 4 * (1/3) * (149/150). The reference is some way off, so that the KL has a gradient."""
    learner, rollouts, _ = world(*LOUD)
    with torch.no_grad():
        for parameter in learner.reference.parameters():
            parameter.mul_(1.05)
    caught = gradient(learner, rollouts)
    beta = 4 / 3 * 149 / 150
    assert learner.method.auxiliary[0].metrics() == {"sdpg/beta": pytest.approx(beta)}
    assert close(caught, by_hand(learner, rollouts, beta, 0.5))
    for without in ((0.0, 0.5), (beta, 0.0)):  # each of the two terms is seen
        learner.policy.model.zero_grad()
        assert not close(caught, by_hand(learner, rollouts, *without), 1e-2)


def test_without_both_terms_it_is_grpo_with_divided_advantages_to_the_bit():
    mine, rollouts, _ = world("method=sdpg", "method.sdpg_beta=0", "train.kl_coef=0")
    plain, _, _ = world("method=grpo", "method.scale_by_std=true")
    left, right = gradient(mine, rollouts), gradient(plain, rollouts)
    assert all(torch.equal(left[name], right[name]) for name in right)
