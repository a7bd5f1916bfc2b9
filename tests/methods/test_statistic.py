"""Statistics of the distributions, by hand; and a nucleus gate as one credit class."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from rlrt.methods.rlrt import TeacherWeight
from rlrt.methods.statistic import Nucleus, Probability, Rank
from rlrt.model.forward import response_logp
from rlrt.training.batch import batch_of, signals_of, student_rows
from rlrt.training.update import learn
from tests.training.test_update import close, gradient, world

# probabilities .5 .3 .2 at both positions; sampled: the second and the third token
LOGP = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log()
SAMPLED = torch.tensor([1, 2])


def test_rank_counts_the_more_probable_tokens():
    assert Rank()(LOGP, SAMPLED).tolist() == [1.0, 2.0]


def test_the_nucleus_is_the_smallest_set_with_at_least_top_p():
    assert Nucleus(0.5)(LOGP, torch.tensor([0, 1])).tolist() == [1.0, 0.0]  # the first token alone has .5
    assert Nucleus(0.7)(LOGP, SAMPLED).tolist() == [1.0, 0.0]  # .5 + .3
    assert Nucleus(0.9)(LOGP, SAMPLED).tolist() == [1.0, 1.0]


def test_the_probability_of_a_given_token():
    assert Probability(0)(LOGP, SAMPLED).tolist() == pytest.approx([0.5, 0.5])


@dataclass
class NucleusGate(TeacherWeight):
    """RLRT on the tokens that are outside the teacher's nucleus."""

    def statistics(self):
        return (Nucleus(0.9), Rank())

    def token_gate(self, signals):
        return super().token_gate(signals) & (signals.teachers[0].statistics[Nucleus(0.9)] == 0)


def gated(*overrides):
    learner, rollouts, config = world("method=rlrt", *overrides)
    learner.method.credit = NucleusGate(**vars(learner.method.credit))
    return learner, rollouts, config


def test_a_nucleus_gate_is_one_credit_class():
    learner, rollouts, _ = gated()
    signals = signals_of(rollouts, 1, [])
    metrics = learn(learner, rollouts, signals, 1e-12).metrics
    teacher = signals.teachers[0]
    batch, _, _ = batch_of(learner, rollouts, signals, teacher.has_B)
    inside = torch.zeros_like(signals.mask_BT)
    for i, row in enumerate(batch.teacher_rows[0]):  # by whole distributions, one row at a time
        if row is not None:
            logp = response_logp(learner.teacher.model, [row], 1.0)
            inside[i, : len(logp)] = Nucleus(0.9)(logp, torch.tensor(row.response_ids)) == 1
    taught = signals.mask_BT & teacher.has_B[:, None] & signals.correct_B[:, None]
    weighted = taught & ~inside
    assert 0 < int(weighted.sum()) < int(taught.sum())
    gap = signals.logp_BT - teacher.logp_BT
    sign = learner.method.advantage(signals).sign()[:, None]
    weight = (sign * gap).exp().clamp(0.8, 1.2)[weighted]
    assert metrics["rlrt/weight_mean"] == pytest.approx(float(weight.double().mean()), abs=1e-4)
    assert metrics["rlrt/gap_mean"] == pytest.approx(float(gap[taught].double().mean()), abs=1e-4)  # of all tokens


def test_the_students_statistics_are_those_of_its_own_distributions():
    learner, rollouts, _ = gated()
    signals = signals_of(rollouts, 1, [])
    learn(learner, rollouts, signals, 0.0)
    for i, row in enumerate(student_rows(rollouts)):
        expected = Rank()(response_logp(learner.policy.model, [row], 1.0), torch.tensor(row.response_ids))
        assert torch.equal(signals.statistics[Rank()][i, : len(expected)], expected)


def test_statistics_do_not_depend_on_the_pass_that_computes_them():
    whole, cut, plain = gated(), gated("train.token_budget=70"), world("method=rlrt")
    first = gradient(*whole[:2])
    assert close(gradient(*cut[:2]), first)
    assert not close(gradient(*plain[:2]), first, 1e-3)
