"""Rollouts by an engine with weights of its own: corrected by importance weights, and sampled ahead where that is asked for."""

from __future__ import annotations

import json

import pytest
import torch

from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.execution.execute import execute
from rlrt.execution.parts import parts_of
from rlrt.sampling.sampler import Sampler
from rlrt.training.batch import signals_of
from rlrt.training.importance import Rule
from rlrt.training.loss import importance
from rlrt.training.update import learn
from tests.execution.test_resume import numbers
from tests.helpers import settings
from tests.training.test_update import close, gradient

SMALL = ("train.prompts_per_step=4", "eval.prompts=4", "tracking=none", "train.eval_every=0")
COPYING = (
    "engine._target_=tests.engines.copying.CopyingEngine", "+engine.importance_clip=2.0", "+engine.off=0.0",
)  # fmt: skip


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(folder, *overrides, stop=lambda: False):
    execute(settings(*SMALL, *overrides), folder, lambda line: None, stop, progress=False)
    return records(folder)


def stepped(name, *overrides, off=0.0):
    """A learner, its rollouts and the signals of an engine that reports log-probabilities ``off`` by some nats."""
    config = settings(f"method={name}", "train.prompts_per_step=4", *COPYING, f"engine.off={off}", *overrides)
    config.data.prepare()
    learner = build_learner(config)
    sampler = Sampler(config.engine, learner.policy, learner.builder, config.data, seed=3)
    return learner, sampler(config.data.train[:4], 8, ("test",))


def gradient_of(learner, rollouts):
    caught = {}

    def catch(lr, norm):
        for name, p in learner.policy.model.named_parameters():
            caught[name] = p.grad.clone()
        learner.policy.optimiser.zero_grad(set_to_none=True)
        return 0.0

    learner.policy.step = catch
    result = learn(learner, rollouts, signals_of(rollouts, 1, learner.policy.special_ids, exact=False), 1e-3)
    return caught, result.metrics


def test_importance_weights_by_hand():
    learner, rollouts = stepped("grpo")
    signals = signals_of(rollouts, 1, [], exact=False)
    signals.sampler_logp_BT = torch.full_like(signals.logp_BT, -1.0)
    signals.logp_BT = torch.full_like(signals.logp_BT, -0.5)
    signals.logp_BT[0] = -3.0
    learner.importance = Rule(clip=1.5)
    weight_BT = importance(learner, signals)
    real = signals.mask_BT
    assert weight_BT[1:][real[1:]] == pytest.approx(1.5)  # e^.5 = 1.649, cut
    assert weight_BT[0][real[0]] == pytest.approx(0.1353353, abs=1e-6)  # e^-2
    assert bool((weight_BT[~real] == 1).all())
    learner.importance = Rule()
    assert bool((importance(learner, signals) == 1).all())


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_faithful_engine_changes_nothing(minibatches):
    more = (f"train.minibatches={minibatches}",)
    learner, rollouts = stepped("rlrt", *more)
    mine, metrics = gradient_of(learner, rollouts)
    plain = build_learner(settings("method=rlrt", "train.prompts_per_step=4", *more))
    assert close(mine, gradient(plain, rollouts))
    assert metrics["sampler/logp_gap_abs_max"] < 1e-5
    assert metrics["sampler/importance_mean"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("off", "weight"), [(0.1, 0.904837), (-0.1, 1.105171), (-3.0, 2.0)])
def test_what_the_sampler_was_off_by_is_in_the_gradient_and_in_the_metrics(off, weight):
    """All tokens are off by the same: the policy gradient is scaled by that factor, truncated at 2."""
    plain, rollouts = stepped("grpo")
    expected, _ = gradient_of(plain, rollouts)
    learner, rollouts = stepped("grpo", off=off)
    mine, metrics = gradient_of(learner, rollouts)
    assert close(mine, {k: v * weight for k, v in expected.items()}, 1e-4)
    assert metrics["sampler/logp_gap_abs_mean"] == pytest.approx(abs(off), abs=1e-4)
    assert metrics["sampler/importance_clipped_share"] == (1.0 if weight == 2.0 else 0.0)


def test_the_trainers_exact_entropies_are_recorded(tmp_path):
    mine = run(tmp_path / "copying", "train.steps=2", *COPYING)
    plain = run(tmp_path / "plain", "train.steps=2")
    for one, other in zip(mine[1:], plain[1:], strict=True):
        assert one["policy/entropy"] == pytest.approx(other["policy/entropy"], abs=1e-5)
        assert one["reward/mean"] == other["reward/mean"]
        assert "sampler/kl" in one
        assert "sampler/kl" not in other


def test_memory_is_given_back_before_the_update(tmp_path, monkeypatch):
    config = settings(*SMALL, "train.steps=2", "teacher.probe_prompts=0", *COPYING)
    parts = parts_of(config)
    monkeypatch.setattr("rlrt.execution.execute.parts_of", lambda _: parts)
    execute(config, tmp_path, lambda line: None, lambda: False, progress=False)
    assert config.engine.calls == []  # settings stay as they were checked
    assert parts.engine.calls == [
        "load 0", "sample", "load 0", "sample",  # the first evaluation
        "load 0", "sample", "release", "load 1", "sample", "release", "load 2", "sample", "load 2", "sample",
    ]  # fmt: skip


def test_ahead_by_a_step(tmp_path):
    rows = run(tmp_path, "train.steps=5", "train.sample_ahead=true", "train.lr=1e-3", *COPYING)
    assert [r["rollout/staleness"] for r in rows[1:]] == [0, 1, 1, 1, 1]
    assert rows[1]["sampler/logp_gap_abs_max"] < 1e-5
    assert all(r["sampler/logp_gap_abs_max"] > 1e-3 for r in rows[2:])
    behind = run(tmp_path / "now", "train.steps=5", "train.lr=1e-3", *COPYING)
    assert [r["rollout/staleness"] for r in behind[1:]] == [0] * 5
    assert all(r["sampler/logp_gap_abs_max"] < 1e-5 for r in behind[1:])


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path):
    words = ("train.steps=6", "train.sample_ahead=true", "train.lr=1e-3", "train.eval_every=3", *COPYING)
    run(tmp_path / "whole", *words)
    asked = iter([False, False, True])
    run(tmp_path / "stopped", *words, stop=lambda: next(asked))
    assert len(records(tmp_path / "stopped")) == 4
    run(tmp_path / "stopped", *words)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "train.sample_ahead: expected an engine with weights of its own"),
        ((*COPYING, "train.max_refills=2"), "train.sample_ahead: .* got train.max_refills=2"),
        (
            ("engine=vllm",),
            "train.sample_ahead: the engine works while the update runs, .* engine.release_memory=false",
        ),
    ],
)
def test_what_cannot_be_ahead_is_refused(words, says):
    with pytest.raises(UserError, match=says):
        settings("train.sample_ahead=true", *words)
