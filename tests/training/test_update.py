"""The gradient does not depend on how the work is cut, and is that of the formula."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math

import pytest
import torch

from rlrt.execution.build import build_learner
from rlrt.methods.contexts import Context, Sibling
from rlrt.methods.grpo import group_advantage
from rlrt.model.forward import response_logp
from rlrt.sampling.sampler import Sampler
from rlrt.training.batch import batch_of, signals_of, student_rows
from rlrt.training.update import learn, minibatches
from rlrt.types import Grade
from tests.helpers import METHODS, settings


def world(*overrides: str):
    """A learner and 4 x 6 graded rollouts of the embedded model."""
    group = () if "method=sft" in overrides else ("train.rollouts_per_prompt=6",)
    config = settings("train.prompts_per_step=4", *group, *overrides)
    config.data.prepare()
    return build_learner(config), copy.deepcopy(sampled()), config


@functools.cache
def sampled():
    """The same rollouts for every method: all start from the embedded model."""
    config = settings("method=grpo")
    config.data.prepare()
    learner = build_learner(config)
    return Sampler(config.engine, learner.policy, learner.builder, config.data, seed=3)(
        config.data.train[:4], 6, ("test",)
    )


def gradient(learner, rollouts) -> dict[str, torch.Tensor]:
    """The gradient of one update, caught before the optimiser step."""
    caught: dict[str, torch.Tensor] = {}

    def catch(lr: float, norm: float) -> float:
        for name, p in learner.policy.model.named_parameters():
            caught[name] = p.grad.clone()
        learner.policy.optimiser.zero_grad(set_to_none=True)
        return 0.0

    learner.policy.step = catch
    learn(learner, rollouts, signals_of(rollouts, 1, learner.policy.special_ids), 1e-3)
    return caught


def solve(rollouts, group: int) -> None:
    """Every rollout of a group gets the same reward."""
    for rollout in rollouts:
        if rollout.group == group:
            rollout.grade = Grade(correct=True, reward=1.0)


def close(a, b, tolerance=1e-5):
    scale = max(float(v.abs().max()) for v in b.values())
    return all(torch.allclose(a[k], b[k], atol=tolerance * scale) for k in b)


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_do_not_change_the_gradient(name):
    learner, rollouts, _ = world(f"method={name}")
    whole = gradient(learner, rollouts)
    other, _, _ = world(f"method={name}", "train.token_budget=70")
    assert close(gradient(other, rollouts), whole)
    assert max(float(g.abs().max()) for g in whole.values()) > 0


def test_grpo_gradient_is_that_of_the_formula():
    learner, rollouts, _ = world("method=grpo")
    caught = gradient(learner, rollouts)
    model = learner.policy.model
    rows = student_rows(rollouts)
    advantage = group_advantage(
        torch.tensor([r.grade.reward for r in rollouts]), torch.tensor([r.group for r in rollouts]), False
    )
    tokens = sum(len(r.response_ids) for r in rows)
    total = torch.zeros(())
    for row, a in zip(rows, advantage, strict=True):
        logp = response_logp(model, [row], 1.0).gather(-1, torch.tensor(row.response_ids)[:, None])
        total = total - a * logp.sum() / tokens  # every rollout, also those with A = 0, is in the denominator
    total.backward()
    assert close(caught, {n: p.grad for n, p in model.named_parameters()})


def by_hand(name: str, learner, rollouts) -> dict[str, torch.Tensor]:
    """The gradient of a method's formula, one rollout at a time through the model's plain logits."""
    model, builder = learner.policy.model, learner.builder
    contexts = Sibling().texts(rollouts)
    reward, group = torch.tensor([r.grade.reward for r in rollouts]), torch.tensor([r.group for r in rollouts])
    advantage = group_advantage(reward, group, name == "rlrt")
    tokens = sum(len(r.generation.token_ids) for r in rollouts)
    taught = sum(len(r.generation.token_ids) for r, c in zip(rollouts, contexts, strict=True) if c is not None)

    def logp_TV(prompt_ids, response):
        ids = torch.tensor([[*prompt_ids, *response]])
        return model(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)

    total = torch.zeros(())
    for r, a, context in zip(rollouts, advantage, contexts, strict=True):
        response = r.generation.token_ids
        student = logp_TV(r.prompt_ids, response)
        sampled = student[range(len(response)), response]
        if context is not None:
            with torch.no_grad():
                teacher = logp_TV(builder.teacher(r.prompt, context), response)
        if name == "sd":  # KL(teacher || student) over the tokens of rollouts with a correct sibling
            if context is not None:
                total = total + (teacher.exp() * (teacher - student)).sum() / taught
            continue
        weight = torch.ones(len(response))
        if name == "rlrt" and r.grade.correct and context is not None:
            gap = sampled.detach() - teacher[range(len(response)), response]
            weight = 0.5 + 0.5 * (a.sign() * gap).exp().clamp(0.8, 1.2)  # lam .5, eps_w .2
        total = total - (a * weight * sampled).sum() / tokens
        if name == "entropy":
            total = total + 1e-3 * (student.exp() * student).sum() / tokens
    total.backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["rlrt", "entropy", "sd"])
def test_gradients_are_those_of_the_formulas(name):
    learner, rollouts, _ = world(f"method={name}")
    caught = gradient(learner, rollouts)
    assert close(caught, by_hand(name, learner, rollouts))
    other, _, _ = world("method=grpo")
    assert not close(caught, gradient(other, rollouts), 1e-3)  # and not simply GRPO's


def test_a_gradient_that_is_not_finite_moves_neither_student_nor_teacher():
    learner, rollouts, _ = world("method=sd", "teacher.weights=ema", "teacher.ema_rate=0.5")
    before = [p.detach().clone() for p in learner.teacher.model.parameters()]
    with torch.no_grad():
        learner.policy.model.model.norm.weight[0] = torch.nan
    metrics = learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-3).metrics
    assert not math.isfinite(metrics["policy/grad_norm"])
    assert all(torch.equal(a, b) for a, b in zip(before, learner.teacher.model.parameters(), strict=True))


def test_live_teacher_metrics_are_not_diluted():
    """Mini-batches without a weighted rollout contribute nothing: at a vanishing learning rate, live reads as old."""
    read = {}
    for weights in ("old", "live"):
        learner, rollouts, _ = world("method=rlrt", f"teacher.weights={weights}", "train.minibatches=4")
        result = learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-12)
        read[weights] = result.metrics["rlrt/weight_mean"]
    assert read["live"] == pytest.approx(read["old"], abs=0.1)
    assert read["live"] > 0.8


def test_shares_are_over_the_tokens_that_were_run():
    for aggregation in ("token", "constant"):
        learner, rollouts, _ = world(
            "method=grpo",
            f"train.aggregation={aggregation}",
            "train.minibatches=2",
            "train.clip_low=0",
            "train.clip_high=0",
        )
        share = learn(learner, rollouts, signals_of(rollouts, 1, []), 0.01).metrics["policy/clipped_share"]
        assert 0.05 < share < 0.5, aggregation


def test_rollouts_without_advantage_are_skipped_only_where_no_term_touches_them():
    for name, skips in (("grpo", True), ("rlrt", True), ("entropy", False)):
        learner, rollouts, _ = world(f"method={name}")
        solve(rollouts, 0)
        result = learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-3)
        assert (result.metrics["policy/skipped_share"] > 0) == skips, name


def test_a_step_without_signal_leaves_the_weights():
    learner, rollouts, _ = world("method=grpo")
    group = [r for r in rollouts if r.group == 0]
    solve(group, 0)
    before = [p.detach().clone() for p in learner.policy.model.parameters()]
    result = learn(learner, group, signals_of(group, 1, []), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.policy.model.parameters(), strict=True))
    assert result.metrics["policy/skipped_share"] == 1.0


def test_old_and_live_teachers_agree_with_one_minibatch():
    old, rollouts, _ = world("method=rlrt", "teacher.weights=old")
    live, _, _ = world("method=rlrt", "teacher.weights=live")
    assert close(gradient(old, rollouts), gradient(live, rollouts), 1e-6)


def test_a_live_teacher_is_scored_again_for_each_minibatch():
    results = {}
    for weights in ("old", "live"):
        learner, rollouts, _ = world(
            "method=rlrt", f"teacher.weights={weights}", "train.minibatches=2", "train.lr=0.01"
        )
        learn(learner, rollouts, signals_of(rollouts, 1, []), 0.01)
        results[weights] = [p.detach().clone() for p in learner.policy.model.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(results["old"], results["live"], strict=True))


def test_a_live_teachers_gap_is_kept_of_each_minibatch():
    """At a vanishing learning rate the weights of every mini-batch are those of the step's begin, so D is the old teacher's."""
    gaps = []
    for weights in ("old", "live"):
        learner, rollouts, _ = world("method=rlrt", f"teacher.weights={weights}", "train.minibatches=2")
        gaps.append(learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-12).tokens["gap"])
    assert torch.equal(gaps[0].isnan(), gaps[1].isnan())
    assert torch.allclose(*gaps, atol=1e-4, equal_nan=True)
    assert float(gaps[1].nan_to_num().abs().max()) > 0.1


@pytest.mark.parametrize(("name", "kept"), [("dapo", False), ("grpo", True)])
def test_a_group_of_one_verdict_has_an_advantage_only_where_it_is_asked_for(name, kept):
    """All of group 0 are correct, and a penalty makes their rewards differ."""
    learner, rollouts, _ = world(f"method={name}")
    group = [r for r in rollouts if r.group == 0]
    for i, r in enumerate(group):
        r.grade = Grade(correct=True, reward=1.0 - 0.1 * i)
    result = learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-3)
    own = torch.tensor([r.group == 0 for r in rollouts])
    assert bool((result.tokens["advantage"][own] != 0).any()) == kept
    assert bool((result.tokens["advantage"][~own] != 0).any())


def test_ratio_moves_between_minibatches_only():
    one, rollouts, _ = world("method=grpo")
    assert learn(one, rollouts, signals_of(rollouts, 1, []), 1e-3).metrics["policy/log_ratio_abs_mean"] == 0.0
    two, rollouts, _ = world("method=grpo", "train.minibatches=2")
    assert learn(two, rollouts, signals_of(rollouts, 1, []), 1e-3).metrics["policy/log_ratio_abs_mean"] > 0.0


def test_minibatches_hold_whole_groups():
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    parts = minibatches(group, 2)
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    seen = [set(group[p].tolist()) for p in parts]
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_to_the_start_touches_every_rollout_and_starts_at_zero(estimator):
    learner, rollouts, _ = world("method=grpo", "train.kl_coef=0.1", f"train.kl_estimator={estimator}")
    first = learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-2).metrics
    assert first["policy/kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert first["policy/skipped_share"] == 0.0
    second = learn(learner, rollouts, signals_of(rollouts, 2, []), 1e-2).metrics
    assert abs(second["policy/kl_reference"]) > 1e-4


def test_a_context_that_is_too_long_gives_no_teacher_and_is_counted():
    learner, rollouts, _ = world("method=rlrt", "teacher.max_context_tokens=8")
    metrics = learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-3).metrics
    assert metrics["teacher/share"] == 0.0
    assert metrics["teacher/too_long_share"] > 0.0


class Nothing(Context):
    def texts(self, rollouts):
        return [""] * len(rollouts)


@pytest.mark.parametrize("weights", ["old", "live", "frozen", "snapshot", "ema"])
def test_an_empty_context_gives_weight_one(weights):
    learner, rollouts, _ = world("method=rlrt", f"teacher.weights={weights}")
    learner.contexts = [Nothing()]
    metrics = learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-3).metrics
    assert metrics["teacher/share"] > 0
    assert metrics["rlrt/gap_abs_mean"] < 1e-6
    assert metrics["rlrt/weight_mean"] == pytest.approx(1.0, abs=1e-6)


def test_the_distillation_loss_is_over_rollouts_with_a_teacher():
    learner, rollouts, _ = world("method=sd", "teacher.weights=old", "method.distill_alpha=1.0")
    correct = {r.group for r in rollouts if r.grade.correct}
    metrics = learn(learner, rollouts, signals_of(rollouts, 1, []), 1e-3).metrics
    assert 0 < metrics["teacher/share"] < 1
    assert metrics["policy/skipped_share"] == pytest.approx(1 - metrics["teacher/share"])
    assert metrics["policy/loss"] > 0
    assert correct


ROUTED, CLIPPED, WHOLE = "srpo.RoutedDistillation", "opsd.ClippedDistillation", "sdpo.Distillation"
DENSE = ("method=srpo", "teacher.weights=frozen", "+method.distill_point_clip=0.3", "+method.distill_token_clip=null")


def dense_gradient(*terms, credit=()):
    """The gradient under these auxiliary terms alone."""
    paths = ",".join(f"rlrt.methods.{term}" for term in terms)
    keys = [k for k in DENSE if CLIPPED in terms or ("distill_point" not in k and "distill_token" not in k)]
    keys = [*keys, "~method.srpo_beta"] if ROUTED not in terms else [*keys, "method.srpo_beta=2.0"]
    if WHOLE not in terms and ROUTED not in terms:
        keys += ["~method.distill_alpha", "~method.distill_top_k", "~method.distill_ratio_cap"]
    learner, rollouts, _ = world(*keys, f"method.auxiliary=[{paths}]", "method.policy_loss=null", *credit)
    return gradient(learner, rollouts)


@pytest.mark.parametrize("terms", [(ROUTED, CLIPPED), (CLIPPED, ROUTED), (WHOLE, ROUTED), (WHOLE, CLIPPED)])
def test_each_dense_term_keeps_its_own_rule_beside_another(terms):
    """Losses add up, so gradients do: SRPO's routing, weights and denominator stay SRPO's whichever term stands first."""
    both, parts = dense_gradient(*terms), [dense_gradient(term) for term in terms]
    assert close(both, {name: parts[0][name] + parts[1][name] for name in both})
    assert not close(both, {name: 2 * parts[0][name] for name in both}, 1e-3)


def test_a_credits_teacher_does_not_take_its_rollouts_from_the_policy_loss():
    """RLRT wants a teacher for correct rollouts, SRPO's term one for wrong ones: each slot has its own rollouts."""
    learner, rollouts, _ = world(
        "method=rlrt", "method.auxiliary=[rlrt.methods.srpo.RoutedDistillation]", "+method.distill_alpha=0.5",
        "+method.distill_top_k=0", "+method.distill_ratio_cap=2.0", "+method.srpo_beta=1.0",
    )  # fmt: skip
    batch = signals_of(rollouts, 1, learner.policy.special_ids)
    has_B = torch.ones(len(rollouts), dtype=torch.bool)
    assert torch.equal(learner.method.left_to_terms(has_B, batch), ~batch.correct_B)
    assert bool(batch.correct_B.any())


def test_problems_of_one_id_have_teachers_of_their_own():
    """Ids may repeat in a task of one's own; a teacher is shown its own rollout's question all the same."""
    learner, rollouts, _ = world("method=rlrt", "teacher.context=answer")
    pair = [copy.deepcopy(rollouts[0]), copy.deepcopy(rollouts[-1])]
    for rollout in pair:
        changes = {"id": "same", "final": "7", "states_answer": False}
        rollout.prompt = dataclasses.replace(rollout.prompt, **changes)
    batch, _, _ = batch_of(learner, pair, signals_of(pair, 1, []), torch.ones(2, dtype=torch.bool))
    shown = [learner.policy.tokenizer.decode(row.prompt_ids) for row in batch.teacher_rows[0]]
    assert shown[0] != shown[1]
    for text, rollout in zip(shown, pair, strict=True):
        assert rollout.prompt.text.replace(" ", "") in text.replace(" ", "")


def by_reference(learner):
    """A learner whose passes are the plain ones: no packing, and every credit's scores from a pass of their own."""
    learner.policy.model.config._attn_implementation = "sdpa"
    learner.teacher.model.config._attn_implementation = "sdpa"
    return learner


@pytest.mark.parametrize("name", METHODS)
def test_the_quick_ways_change_no_gradient_and_no_metric(name, monkeypatch):
    """Packing, the shared prefix, and the update's forward pass that the credit reads: equal to the plain computation."""
    learner, rollouts, _ = world(f"method={name}")
    quick = gradient(learner, rollouts)
    other, _, _ = world(f"method={name}")
    monkeypatch.setattr("rlrt.training.scoring.update_pass", lambda *_: None)
    assert close(quick, gradient(by_reference(other), rollouts), 1e-4)


def passes(learner, rollouts):
    """Rows of each forward pass of an update, and whether it made a gradient."""
    from rlrt.model import forward

    seen = []
    original = forward.packed.pack

    def noting(prefixes, owner, responses, device, half):
        seen.append((len(prefixes), len(responses), torch.is_grad_enabled()))
        return original(prefixes, owner, responses, device, half)

    forward.packed.pack = noting
    try:
        gradient(learner, rollouts)
    finally:
        forward.packed.pack = original
    return seen


def test_rlrt_runs_the_student_once_and_the_teacher_on_eligible_rollouts_alone():
    learner, rollouts, _ = world("method=rlrt")
    solve(rollouts, 0)  # without signal: nothing of it is run
    (groups, rows, grad), (contexts, taught, teacher_grad) = passes(learner, rollouts)
    eligible = [
        r for r in rollouts if r.group != 0 and r.grade.correct and Sibling().texts(rollouts)[rollouts.index(r)]
    ]
    mixed = {
        r.group
        for r in rollouts
        if r.group != 0 and 0 < sum(o.grade.correct for o in rollouts if o.group == r.group) < 6
    }
    assert (grad, teacher_grad) == (True, False)
    assert groups == len(mixed)
    assert rows == 6 * len(mixed)
    assert taught == sum(r.group in mixed for r in eligible) > 0
    assert contexts <= 2 * len(mixed) < taught + len(mixed)


def test_where_the_update_takes_several_passes_student_and_teacher_are_scored_in_one():
    learner, rollouts, _ = world("method=rlrt", "train.token_budget=150")
    grads = [grad for _, _, grad in passes(learner, rollouts)]
    assert grads.count(True) > 1
    assert grads[0] is False
