"""``train.old_logp``: whose log-probabilities the policy ratio divides by, what that costs, and what stays the trainer's."""

from __future__ import annotations

import math

import pytest
import torch

from rlrt.execution.build import build_learner
from rlrt.methods.signals import Credited
from rlrt.model import packed
from rlrt.training import scoring
from rlrt.training.batch import signals_of
from rlrt.training.importance import Rule
from rlrt.training.loss import micro_loss, policy_loss_advantage
from rlrt.training.passes import Pass
from rlrt.training.update import learn
from tests.helpers import settings, signals
from tests.sampling.test_source import COPYING, gradient_of, run
from tests.training.test_update import close, gradient, world

SAMPLER = "train.old_logp=sampler"


def stepped(name, *overrides, off=0.0):
    """A learner, and rollouts of an engine with weights of its own, which is off by some nats in every log-probability."""
    learner, rollouts, _ = world(f"method={name}", *overrides)
    learner.importance = Rule(clip=2.0)
    for rollout in rollouts:
        rollout.generation.logp_T = rollout.generation.logp_T + off
        rollout.generation.entropy_T = -rollout.generation.logp_T
    return learner, rollouts


@pytest.fixture(scope="module")
def grpo():
    learner = build_learner(settings("method=grpo", "train.minibatches=2"))
    learner.importance = Rule(clip=2.0)
    return learner


@pytest.mark.parametrize(
    ("pi", "advantage", "trainer", "sampler"),
    [
        # pi_trainer .25, pi_sampler .2: the importance weight is 1.25; the clip is .8 to 1.28.
        (0.3, 1, -1.2 * 1.25, -1.28),  # ratios 1.2 and 1.5: the second is clipped
        (0.3, -1, 1.2 * 1.25, 1.5),  # no upper bound at a negative advantage
        (0.1, 1, -0.4 * 1.25, -0.5),  # ratios .4 and .5; no lower bound at a positive advantage
        (0.1, -1, 0.8 * 1.25, 0.8),  # both are clipped
        (0.22, 1, -0.88 * 1.25, -1.1),  # within both clips: pi A / pi_sampler either way
        (0.22, -1, 0.88 * 1.25, 1.1),
    ],
)
def test_the_loss_of_one_token_by_hand(grpo, pi, advantage, trainer, sampler):
    one = torch.ones(1, 1)
    found, slopes = {}, {}
    for old in ("trainer", "sampler"):
        given = signals([1.0], [0], [1], logp_BT=one * math.log(0.25), dtype=torch.float32)
        given.sampler_logp_BT = one * math.log(0.2)
        given.old_logp_BT = given.sampler_logp_BT if old == "sampler" else None
        logp_N = torch.tensor([math.log(pi)], requires_grad=True)
        used_BT = policy_loss_advantage(grpo, given, torch.tensor([True]), Credited(one * advantage))
        done = Pass(torch.tensor([0]), given, logp_N, None, [], [])
        loss, _, counts = micro_loss(grpo, done, used_BT, one, [], one)
        loss.backward()
        found[old], slopes[old] = loss.item(), logp_N.grad.item()
        assert ("sampler/kl" in counts) == (old == "sampler")
        if old == "sampler":
            gap = math.log(pi / 0.2)
            assert counts["sampler/logp_gap_abs_mean"].item() == pytest.approx(abs(gap), abs=1e-6)
            assert counts["sampler/importance_mean"].item() == pytest.approx(pi / 0.2, abs=1e-6)
            assert counts["sampler/kl"].item() == pytest.approx(pi / 0.2 - 1 - gap, abs=1e-6)
    assert found == pytest.approx({"trainer": trainer, "sampler": sampler}, abs=1e-6)
    # the derivative by logp is the loss itself (d ratio = ratio), and 0 where the clip holds it
    held = {"trainer": trainer == 0.8 * 1.25, "sampler": sampler in (-1.28, 0.8)}
    assert slopes == pytest.approx({k: 0.0 if held[k] else found[k] for k in found}, abs=1e-6)


def counted(monkeypatch):
    """A list that gets the number of rows of every forward pass."""
    passes, hidden_states = [], packed.hidden_states

    def counting(model, packing):
        passes.append(1)
        return hidden_states(model, packing)

    monkeypatch.setattr(packed, "hidden_states", counting)
    return passes


@pytest.mark.parametrize(
    ("words", "trainer", "sampler"),
    [
        (("grpo",), 1, 1),  # the update's own pass is run first, or alone
        (("grpo", "train.minibatches=2"), 1 + 2, 2),
        (("rlrt",), 1 + 1, 1 + 1),  # the teacher, and the update's own pass
        (("rlrt", "train.minibatches=2"), 1 + 2, 1 + 2),  # one pass for both sides of D, of fewer rows
        (("rlrt", "train.minibatches=2", "teacher.weights=live"), 1 + 2 + 2, 2 + 2),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_forward_passes(monkeypatch, words, trainer, sampler, exact):
    (name, *more), found = words, []
    for old in ("trainer", "sampler"):
        with monkeypatch.context() as patch:
            learner, rollouts = stepped(name, *more, f"train.old_logp={old}")
            passes = counted(patch)
            learn(learner, rollouts, signals_of(rollouts, 1, [], exact=exact), 1e-3)
            found.append(len(passes))
    assert found == [trainer, sampler]


def test_only_both_sides_of_d_are_scored(monkeypatch):
    """Rows of the scoring passes: every student under ``trainer``; under ``sampler`` those that have a teacher."""
    rows, scored = {}, scoring.scored
    for old in ("trainer", "sampler"):
        learner, rollouts = stepped("rlrt", "train.minibatches=2", f"train.old_logp={old}")
        seen = rows.setdefault(old, [])

        def counting(model, given, *more, seen=seen):
            seen.append(len(given))
            return scored(model, given, *more)

        monkeypatch.setattr(scoring, "scored", counting)
        metrics = learn(learner, rollouts, signals_of(rollouts, 1, [], exact=False), 1e-3).metrics
    taught = round(metrics["teacher/share"] * 24)
    assert 0 < taught < 24
    assert rows == {"trainer": [24 + taught], "sampler": [taught + taught]}


def plain_steps(learner):
    """Gradient descent in place of Adam, which makes a step of rounding too."""

    def step(lr, norm):
        with torch.no_grad():
            for p in learner.policy.model.parameters():
                p -= lr * p.grad
                p.grad = None
        return 0.0

    learner.policy.step = step


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("grpo", ()),
        ("grpo", ("train.minibatches=2",)),
        ("rlrt", ("train.minibatches=2",)),
        ("rlrt", ("train.minibatches=2", "train.token_budget=150")),
        ("rlrt", ("train.minibatches=2", "teacher.weights=live")),
        ("gspo", ("train.minibatches=2",)),
        ("sd", ("train.minibatches=2",)),
        ("dasd", ("train.minibatches=2",)),
    ],
)
def test_an_exact_engine_makes_no_difference(name, more):
    """After all mini-batches the weights are the same: the ratio of the later ones divides by the same numbers."""
    weights, metrics = {}, {}
    for old in ("trainer", "sampler"):
        learner, rollouts, _ = world(f"method={name}", *more, f"train.old_logp={old}")
        before = {n: p.detach().clone() for n, p in learner.policy.model.named_parameters()}
        plain_steps(learner)
        metrics[old] = learn(learner, rollouts, signals_of(rollouts, 1, []), 0.05).metrics
        weights[old] = {n: p.detach() - before[n] for n, p in learner.policy.model.named_parameters()}
    assert close(weights["sampler"], weights["trainer"], 1e-4)
    same = [k for k in metrics["trainer"] if not k.startswith("time/")]
    assert {k: metrics["sampler"][k] for k in same} == pytest.approx({k: metrics["trainer"][k] for k in same}, abs=1e-4)
    if more:
        assert metrics["sampler"]["policy/log_ratio_abs_mean"] > 1e-3
    assert not any(k.startswith("sampler/") for k in metrics["sampler"])


@pytest.mark.parametrize("off", [0.1, -0.1])
def test_the_samplers_error_is_in_the_ratio(off):
    """Within the clip the gradient is that of importance weights; its metrics come from the update's own pass."""
    plain, rollouts = stepped("grpo")
    expected, _ = gradient_of(plain, rollouts)
    learner, rollouts = stepped("grpo", SAMPLER, off=off)
    mine, metrics = gradient_of(learner, rollouts)
    assert close(mine, {k: v * math.exp(-off) for k, v in expected.items()}, 1e-4)
    assert metrics["sampler/logp_gap_abs_mean"] == pytest.approx(abs(off), abs=1e-4)
    assert metrics["sampler/importance_mean"] == pytest.approx(math.exp(-off), abs=1e-4)
    assert metrics["sampler/kl"] == pytest.approx(math.exp(-off) - 1 + off, abs=1e-4)
    assert metrics["policy/log_ratio_abs_mean"] == pytest.approx(abs(off), abs=1e-4)
    assert not {"sampler/logp_gap_abs_max", "sampler/importance_clipped_share"} & metrics.keys()


def test_beyond_the_clip_a_token_has_no_gradient(monkeypatch):
    """Off by -3 the ratio is e^3: held back at every positive advantage; the importance weight would be cut at 2."""
    learner, rollouts = stepped("grpo", SAMPLER, off=-3.0)
    mine, metrics = gradient_of(learner, rollouts)
    plain, rollouts = stepped("grpo")
    kind = type(plain.method.advantage)
    advantage = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, given: advantage(self, given).clamp(max=0) * math.exp(3))
    expected, _ = gradient_of(plain, rollouts)
    assert close(mine, expected, 1e-4)
    assert 0.05 < metrics["policy/clipped_share"] < 0.95


def test_the_distance_to_the_sampler_is_that_before_the_first_step():
    """With several mini-batches the later ones have moved away; their distance is in policy/log_ratio_abs_mean."""
    learner, rollouts = stepped("grpo", SAMPLER, "train.minibatches=4")
    metrics = learn(learner, rollouts, signals_of(rollouts, 1, [], exact=False), 1e-2).metrics
    assert metrics["sampler/logp_gap_abs_mean"] < 1e-5
    assert metrics["policy/log_ratio_abs_mean"] > 1e-3


@pytest.mark.parametrize("more", [(), ("train.minibatches=2",), ("train.minibatches=2", "teacher.weights=live")])
def test_d_is_the_trainers_on_both_sides(more):
    found = []
    for off in (0.0, 0.2):
        learner, rollouts = stepped("rlrt", SAMPLER, *more, off=off)
        plain_steps(learner)
        result = learn(learner, rollouts, signals_of(rollouts, 1, [], exact=False), 1e-12)
        found.append(result.tokens["weight"].nan_to_num() if more else result.tokens["gap"].nan_to_num())
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert float(found[0].abs().max()) > 0.1


def test_a_credit_that_reads_entropies_still_gets_the_trainers():
    learner, rollouts = stepped("dasd", SAMPLER, "train.minibatches=2", off=0.2)
    given = signals_of(rollouts, 1, [], exact=False)
    learn(learner, rollouts, given, 1e-3)
    assert bool(given.scored_B.all())
    assert float(given.entropy_BT[given.mask_BT].min()) >= 0
    torch.testing.assert_close(given.logp_BT + 0.2, given.sampler_logp_BT, rtol=0, atol=0.21)
    gap = (given.sampler_logp_BT - given.logp_BT)[given.mask_BT]
    torch.testing.assert_close(gap, torch.full_like(gap, 0.2), rtol=0, atol=1e-4)


def test_entropies_are_the_engines_where_nothing_was_scored():
    learner, rollouts = stepped("rlrt", SAMPLER, "train.minibatches=2")
    given = signals_of(rollouts, 1, [], exact=False)
    before = [r.generation.entropy_T.clone() for r in rollouts]
    learn(learner, rollouts, given, 1e-3)
    for i, rollout in enumerate(rollouts):
        changed = not torch.equal(rollout.generation.entropy_T, before[i])
        assert changed == bool(given.scored_B[i])
    assert 0 < int(given.scored_B.sum()) < len(rollouts)


def test_rollouts_sampled_ahead(tmp_path):
    """The ratio holds their staleness too; a run ends, and its record has the distance."""
    rows = run(tmp_path, "train.steps=3", "train.sample_ahead=true", "train.lr=1e-3", SAMPLER, *COPYING)
    assert [r["rollout/staleness"] for r in rows[1:]] == [0, 1, 1]
    assert rows[1]["sampler/logp_gap_abs_mean"] < 1e-5
    assert rows[2]["sampler/logp_gap_abs_mean"] > 1e-4
    assert rows[2]["policy/log_ratio_abs_mean"] == pytest.approx(rows[2]["sampler/logp_gap_abs_mean"])


def test_the_default_is_the_trainers():
    learner, rollouts, _ = world("method=rlrt")
    other, _, _ = world("method=rlrt", "train.old_logp=trainer")
    assert close(gradient(learner, rollouts), gradient(other, rollouts), 0.0)
