"""Importance weights, masks and rejections, by hand on rollouts of at most three tokens; and what they do to gradients.

rollout   ratios r_t       R = product   G = geometric mean
0         2, 1/2, 4        4             4^(1/3) = 1.587401
1         1.1, 1, 0.9      0.99          .99^(1/3) = .996655
2         3 (one token)    3             3
3         (no token)       1             1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from rlrt.engines.hf import HfEngine
from rlrt.errors import UserError
from rlrt.training.importance import Rule, metrics, ratios, weights
from rlrt.types import Grade
from tests.helpers import METHODS, settings
from tests.sampling.test_source import COPYING, gradient_of, stepped
from tests.training.test_update import close

RATIOS = [[2.0, 0.5, 4.0], [1.1, 1.0, 0.9], [3.0], []]
WHOLE = [[1.0, 1.0, 1.0]] * 2 + [[1.0]] + [[]]


def world(rows=RATIOS):
    """logp_BT, sampler_logp_BT and mask_BT with these ratios; what is outside the mask is far off."""
    mask_BT = torch.tensor([[t < len(row) for t in range(3)] for row in rows])
    log_BT = torch.tensor([[math.log(row[t]) if t < len(row) else 9.0 for t in range(3)] for row in rows])
    return torch.full_like(log_BT, -1.0), -1.0 - log_BT, mask_BT


def given(rule, rows=RATIOS):
    """The weights of each rollout's tokens, as lists."""
    logp_BT, sampler_BT, mask_BT = world(rows)
    full_BT = weights(rule, logp_BT, sampler_BT, mask_BT).full()
    assert bool((full_BT[~mask_BT] == 0).logical_or(full_BT[~mask_BT] == 1).all())
    return [full_BT[i, : len(row)].tolist() for i, row in enumerate(rows)]


def near(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(), WHOLE),
        (Rule(clip=2.0), [[2.0, 0.5, 2.0], [1.1, 1.0, 0.9], [2.0], []]),
        (Rule(clip=3.5), [[2.0, 0.5, 3.5], [1.1, 1.0, 0.9], [3.0], []]),
        (Rule(clip=10.0, level="sequence"), [[4.0] * 3, [0.99] * 3, [3.0], []]),
        (Rule(clip=2.0, level="sequence"), [[2.0] * 3, [0.99] * 3, [2.0], []]),
        (Rule(clip=2.0, token_bounds=(0.5, 2.0)), [[2.0, 0.5, 0.0], [1.1, 1.0, 0.9], [0.0], []]),  # bounds are inside
        (Rule(clip=2.0, token_bounds=(0.6, 2.0)), [[2.0, 0.0, 0.0], [1.1, 1.0, 0.9], [0.0], []]),
        (Rule(clip=2.0, token_bounds=(0.0, 1.0)), [[0.0, 0.5, 0.0], [0.0, 1.0, 0.9], [0.0], []]),  # one side alone
        (Rule(sequence_bounds=(0.5, 4.0)), WHOLE),
        (Rule(sequence_bounds=(0.5, 3.9)), [[0.0] * 3, [1.0] * 3, [1.0], []]),
        (Rule(sequence_bounds=(1.0, 4.0)), [[1.0] * 3, [0.0] * 3, [1.0], []]),
        (Rule(clip=2.0, sequence_bounds=(0.5, 2.0)), [[0.0] * 3, [1.1, 1.0, 0.9], [0.0], []]),
        (Rule(geometric_bounds=(0.99, 1.01)), [[0.0] * 3, [1.0] * 3, [0.0], []]),
        (Rule(geometric_bounds=(0.999, 1.001)), [[0.0] * 3, [0.0] * 3, [0.0], []]),
        (Rule(geometric_bounds=(0.5, 1.5875)), [[1.0] * 3, [1.0] * 3, [0.0], []]),
        (Rule(geometric_bounds=(0.5, 1.5873)), [[0.0] * 3, [1.0] * 3, [0.0], []]),
        (Rule(geometric_bounds=(0.5, 3.0)), WHOLE),
        (Rule(veto=0.5), WHOLE),  # at 1/2, not below
        (Rule(veto=0.51), [[0.0] * 3, [1.0] * 3, [1.0], []]),
        (Rule(clip=2.0, veto=0.95), [[0.0] * 3, [0.0] * 3, [2.0], []]),
        (
            Rule(
                clip=10.0, level="sequence", token_bounds=(0.5, 2.0), veto=0.1
            ),  # masks multiply the sequence's weight
            [[4.0, 4.0, 0.0], [0.99] * 3, [0.0], []],
        ),
    ],
)
def test_weights_by_hand(rule, expected):
    near(given(rule), expected)


def test_ratios_by_hand():
    found = ratios(*world())
    assert found.log_sequence_B.exp().tolist() == pytest.approx([4, 0.99, 3, 1], abs=1e-6)
    assert found.log_geometric_B.exp().tolist() == pytest.approx([4 ** (1 / 3), 0.99 ** (1 / 3), 3, 1], abs=1e-6)
    assert found.known_B.tolist() == [True] * 4


@pytest.mark.parametrize("odd", [-math.inf, math.inf, math.nan])
def test_a_log_probability_that_is_not_finite_rejects_its_rollout_and_no_other(odd):
    logp_BT, sampler_BT, mask_BT = world()
    sampler_BT[0, 1] = odd
    sampler_BT[3, 2] = odd  # outside the mask: nobody reads it
    for rule in (Rule(), Rule(clip=2.0), Rule(clip=2.0, level="sequence", geometric_bounds=(0.1, 10.0), veto=1e-4)):
        found = weights(rule, logp_BT, sampler_BT, mask_BT)
        assert found.rejected_B.tolist() == [True, False, False, False]
        assert found.full()[0].tolist() == [0.0, 0.0, 0.0]
        assert bool(found.full()[1:].isfinite().all())
    numbers = metrics(Rule(clip=2.0), logp_BT, sampler_BT, mask_BT)
    assert numbers["sampler/not_finite_share"] == numbers["sampler/rejected_share"] == 0.25
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["sampler/sequence_ratio_max"] == pytest.approx(3.0)  # without the rejected one's


def test_a_trainer_that_computes_no_number_is_not_hidden():
    """NaN of the trainer's own reaches the gradient, where the alarm sees it."""
    logp_BT, sampler_BT, mask_BT = world()
    logp_BT[1, 0] = math.nan
    rule = Rule(clip=2.0, token_bounds=(0.5, 2.0), sequence_bounds=(0.5, 2.0), geometric_bounds=(0.5, 2.0), veto=0.1)
    assert math.isnan(float(weights(rule, logp_BT, sampler_BT, mask_BT).full()[1, 0]))


def test_weights_have_no_gradient_and_do_not_depend_on_the_cut():
    logp_BT, sampler_BT, mask_BT = world()
    rule = Rule(clip=2.0, level="sequence", token_bounds=(0.5, 2.0), geometric_bounds=(0.5, 2.0))
    whole = weights(rule, logp_BT.requires_grad_(), sampler_BT, mask_BT).full()
    assert not whole.requires_grad
    for i in range(4):
        assert torch.equal(
            weights(rule, logp_BT[i : i + 1], sampler_BT[i : i + 1], mask_BT[i : i + 1]).full()[0], whole[i]
        )


def test_a_long_rollout_does_not_overflow():
    """20,000 tokens of ratio e: R = e^20000; G = e."""
    logp_BT, mask_BT = torch.zeros(1, 20_000), torch.ones(1, 20_000, dtype=torch.bool)
    for sign in (-1.0, 1.0):
        sampler_BT = torch.full_like(logp_BT, sign)
        for level in ("token", "sequence"):
            rule = Rule(clip=2.0, level=level)
            assert bool(weights(rule, logp_BT, sampler_BT, mask_BT).full().isfinite().all())
            assert all(math.isfinite(v) for v in metrics(rule, logp_BT, sampler_BT, mask_BT).values())


def test_metrics_by_hand():
    numbers = metrics(Rule(clip=2.0, token_bounds=(0.5, 2.0), sequence_bounds=(0.5, 3.5)), *world())
    tokens = [2, 0.5, 4, 1.1, 1, 0.9, 3]
    logs = [math.log(r) for r in tokens]
    expected = {
        "sampler/logp_gap_abs_mean": sum(map(abs, logs)) / 7,
        "sampler/logp_gap_abs_max": math.log(4),
        "sampler/kl": sum(r - 1 - x for r, x in zip(tokens, logs, strict=True)) / 7,
        "sampler/importance_mean": 12.5 / 7,
        "sampler/importance_clipped_share": 2 / 7,  # 4 and 3
        "sampler/masked_share": 4 / 7,  # rollout 0 is rejected, and the 3 is masked
        "sampler/rejected_share": 1 / 4,
        "sampler/not_finite_share": 0.0,
        "sampler/sequence_ratio_mean": (4 + 0.99 + 3 + 1) / 4,
        "sampler/sequence_ratio_min": 0.99,
        "sampler/sequence_ratio_max": 4.0,
        "sampler/geometric_ratio_mean": (4 ** (1 / 3) + 0.99 ** (1 / 3) + 3 + 1) / 4,
        "sampler/geometric_ratio_min": 0.99 ** (1 / 3),
        "sampler/geometric_ratio_max": 3.0,
    }
    assert numbers == pytest.approx(expected, abs=1e-6)
    by_sequence = metrics(Rule(clip=2.0, level="sequence"), *world())
    assert by_sequence["sampler/importance_mean"] == pytest.approx((4 + 0.99 + 3 + 1) / 4, abs=1e-6)
    assert by_sequence["sampler/importance_clipped_share"] == 0.5


def test_nothing_known_gives_shares_alone():
    logp_BT, sampler_BT, mask_BT = world()
    sampler_BT[:] = math.nan
    found = metrics(Rule(clip=2.0), logp_BT, sampler_BT, mask_BT)
    assert found == {"sampler/not_finite_share": 0.75, "sampler/rejected_share": 0.75, "sampler/masked_share": 1.0}


# what the weights do to a gradient


def off_by(rollouts, logs):
    """Make the engine's log-probabilities of rollout i off by so much that every ratio becomes e^logs[i]."""
    for rollout, log in zip(rollouts, logs, strict=True):
        rollout.generation.logp_T = rollout.generation.logp_T - log


@pytest.mark.parametrize(
    ("name", "minibatches"), [*((name, 1) for name in METHODS), ("rlrt", 2), ("sd", 2), ("srpo", 2)]
)
def test_every_term_is_scaled_by_the_weight(name, minibatches):
    """All tokens have ratio 1.5: the whole gradient, dense terms, bonus and KL included, is 1.5 times that of ratio 1.

    Of the second mini-batch the policy's weights are those of the first, since the learning rate is nothing.
    """
    more = (f"train.minibatches={minibatches}", "train.kl_coef=0.1", "train.token_budget=2000")
    plain, rollouts = stepped(name, *more)
    expected, _ = gradient_of(plain, rollouts)
    assert max(float(g.abs().max()) for g in expected.values()) > 0
    learner, rollouts = stepped(name, *more)
    off_by(rollouts, [math.log(1.5)] * len(rollouts))
    mine, numbers = gradient_of(learner, rollouts)
    assert close(mine, {k: 1.5 * v for k, v in expected.items()}, 1e-4)
    assert numbers["sampler/importance_mean"] == pytest.approx(1.5, abs=1e-4)


@pytest.mark.parametrize("name", ["grpo", "gspo", "rlrt", "sd", "opsd", "srpo", "entropy"])
def test_every_term_is_scaled_once_where_the_policy_ratio_has_the_sampler(name):
    """Under ``train.old_logp=sampler``: by the policy ratio, by SDPO's own, or by the weight of the moment; a wide clip."""
    more = ["train.kl_coef=0.1", "train.clip_low=1", "train.clip_high=9", "train.old_logp=sampler"]
    plain, rollouts = stepped(name, *more)
    expected, _ = gradient_of(plain, rollouts)
    learner, rollouts = stepped(name, *more)
    off_by(rollouts, [math.log(1.5)] * len(rollouts))
    mine, numbers = gradient_of(learner, rollouts)
    assert close(mine, {k: 1.5 * v for k, v in expected.items()}, 1e-4)
    assert numbers["sampler/importance_mean"] == pytest.approx(1.5, abs=1e-4)


@pytest.mark.parametrize("name", ["grpo", "sd", "entropy"])
def test_without_a_scoring_pass_too_an_unknown_probability_leaves_its_rollout_out(name):
    whole, rollouts = stepped(name, "train.old_logp=sampler")
    expected, _ = gradient_of(whole, rollouts)
    halves = []
    for parity in (0, 1):
        learner, rollouts = stepped(name, "train.old_logp=sampler")
        for rollout in rollouts[parity::2]:
            rollout.generation.logp_T[-1] = math.nan
        halves.append(gradient_of(learner, rollouts)[0])
    assert close({k: halves[0][k] + halves[1][k] for k in expected}, expected, 1e-4)


def test_the_penalty_to_another_reference_is_scaled_too():
    """Rewards are all equal, so that the KL alone has a gradient; the reference is some way off."""
    gradients = []
    for log in (0.0, math.log(1.5)):
        learner, rollouts = stepped("grpo", "train.kl_coef=0.1", "train.token_budget=2000")
        with torch.no_grad():
            for parameter in learner.reference.parameters():
                parameter.mul_(1.1)
        for rollout in rollouts:
            rollout.grade = Grade(correct=True, reward=1.0)
        off_by(rollouts, [log] * len(rollouts))
        gradients.append(gradient_of(learner, rollouts)[0])
    assert max(float(g.abs().max()) for g in gradients[0].values()) > 1e-4
    assert close(gradients[1], {k: 1.5 * v for k, v in gradients[0].items()}, 1e-4)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("grpo", "importance_sequence_bounds=[0.9,1.1]"),
        ("rlrt", "importance_geometric_bounds=[0.99,1.01]"),
        ("sd", "importance_veto=0.9"),
        ("opsd", "importance_geometric_bounds=[0.99,1.01]"),
        ("srpo", "importance_sequence_bounds=[0.9,1.1]"),
        ("entropy", "importance_token_bounds=[0.9,1.1]"),
    ],
)
def test_a_rejected_rollout_adds_nothing_and_stays_in_the_denominator(name, key):
    """The gradient is the sum of that with one half of the rollouts rejected and that with the other half."""
    whole, rollouts = stepped(name)
    expected, _ = gradient_of(whole, rollouts)
    halves = []
    for parity in (0, 1):
        learner, rollouts = stepped(name, f"train.{key}")
        off_by(rollouts, [-0.5 if i % 2 == parity else 0.0 for i in range(len(rollouts))])
        gradient, numbers = gradient_of(learner, rollouts)
        assert numbers["sampler/rejected_share"] == (0.0 if "token" in key else 0.5)
        assert 0 < numbers["sampler/masked_share"] < 1
        assert numbers["policy/skipped_share"] >= 0.5
        halves.append(gradient)
    assert close({k: halves[0][k] + halves[1][k] for k in expected}, expected, 1e-4)


def test_a_rejected_rollout_counts_in_its_groups_advantages():
    """One group, rewards 1 and 0, the second rejected: the first keeps the advantage 1/2 that it has beside the second."""
    whole, rollouts = stepped("grpo", "method.scale_by_std=false")
    caught = []
    advantage = type(whole.method.advantage).__call__
    learner, rollouts = stepped("grpo", "method.scale_by_std=false", "train.importance_veto=0.9")
    off_by(rollouts, [-0.5] + [0.0] * (len(rollouts) - 1))
    kind = type(learner.method.advantage)
    seen = type(kind.__name__, (kind,), {"__call__": lambda self, s: caught.append(advantage(self, s)) or caught[-1]})
    learner.method.advantage.__class__ = seen
    gradient_of(learner, rollouts)
    rewards = torch.tensor([r.grade.reward for r in rollouts])
    group = torch.tensor([r.group for r in rollouts])
    expected = torch.stack([rewards[i] - rewards[group == group[i]].mean() for i in range(len(rollouts))])
    assert torch.allclose(caught[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("train.importance_veto=1e-4",),
            "train.importance_veto: expected an engine with weights or arithmetic of its own",
        ),
        (("train.importance_level=sequence",), "train.importance_level: expected an engine with weights"),
        (
            ("train.importance_geometric_bounds=[0.99,1.01]",),
            "train.importance_geometric_bounds: expected an engine with",
        ),
        (
            (*COPYING, "train.importance_veto=1"),
            "train.importance_veto: expected a ratio below 1, got 1, which would reject",
        ),
        (
            (*COPYING, "train.importance_veto=1e-4", "train.old_logp=sampler"),
            "train.importance_veto: expected train.old_logp=trainer, got sampler",
        ),
        ((*COPYING, "train.importance_veto=0"), "train.importance_veto: expected a number above 0"),
        (
            (*COPYING, "train.importance_token_bounds=[0.5]"),
            r"train.importance_token_bounds: expected \[LOW,HIGH\], two ratios",
        ),
        ((*COPYING, "train.importance_token_bounds=[1.1,2]"), r"train.importance_token_bounds: expected \[LOW,HIGH\]"),
        (
            (*COPYING, "train.importance_sequence_bounds=[2,0.5]"),
            r"train.importance_sequence_bounds: expected \[LOW,HIGH",
        ),
        (
            (*COPYING, "train.importance_sequence_bounds=[1,1]"),
            r"train.importance_sequence_bounds: expected \[LOW,HIGH",
        ),
        (
            (*COPYING, "train.importance_sequence_bounds=[-1,2]"),
            r"train.importance_sequence_bounds: expected \[LOW,HIGH",
        ),
        ((*COPYING, "train.importance_sequence_bounds=0.5"), "train.importance_sequence_bounds: expected a list"),
        ((*COPYING, "train.importance_geometric_bounds=[nan,2]"), r"train.importance_geometric_bounds: expected \[LOW"),
        (
            (*COPYING, "train.importance_geometric_bounds=[0.5,inf]"),
            r"train.importance_geometric_bounds: expected \[LOW",
        ),
        ((*COPYING, "train.importance_level=group"), "train.importance_level: expected one of token, sequence"),
        (
            ("engine._target_=tests.training.test_importance.Unweighted", "train.importance_level=sequence"),
            "train.importance_level: Unweighted has no importance_clip",
        ),
    ],
)
def test_what_has_no_use_is_refused(words, says):
    with pytest.raises(UserError, match=says):
        settings(*words)


@dataclass
class Unweighted(HfEngine):
    """An engine with arithmetic of its own that declares no ``importance_clip``."""

    exact: ClassVar[bool] = False


def test_bounds_and_level_reach_the_rule():
    made = settings(
        *COPYING, "train.importance_level=sequence", "train.importance_token_bounds=[0.5,2]",
        "train.importance_sequence_bounds=[0,10]", "train.importance_geometric_bounds=[0.99,1.01]",
        "train.importance_veto=1e-4",
    )  # fmt: skip
    rule = Rule.of(made.train, made.engine.importance_clip)
    assert rule == Rule(2.0, "sequence", (0.5, 2.0), (0.0, 10.0), (0.99, 1.01), 1e-4)
    unweighted = settings("engine._target_=tests.training.test_importance.Unweighted", "train.importance_veto=1e-4")
    assert Rule.of(unweighted.train, unweighted.engine.importance_clip) == Rule(None, veto=1e-4)
