"""The training loop, on one page. It names no method, engine, task or tracker."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from rlrt.errors import Interrupted
from rlrt.sampling.source import Source
from rlrt.training.batch import signals_of
from rlrt.training.evaluation import Suite, evaluate
from rlrt.training.learner import Learner
from rlrt.training.timing import clock
from rlrt.training.update import StepResult, learn
from rlrt.types import Rollout, Sampling


@dataclass
class Run:
    """The parts of a run, put together by ``rlrt.execution.build``.

    Attributes:
        source: rollouts for training.
        suites: what is evaluated on; the samplers' seed is ``eval.seed``.
        learner: policy, method and teacher.
        train, eval: from the config.
        position: updates already done (0, or a checkpoint's).
        record: called with (step, metrics) once a step is complete.
        keep_samples: called with (step, rollouts, what the update left of them).
        save: writes a checkpoint of the given step.
        save_due: whether the step's end must be saved; called with (step, metrics).
        release: lets the engine give back what memory it holds, for the update; nothing where it samples beside it.
        stop_requested: True once the run should save and end early.
        probe: what is asked once, before the first update, beside the first evaluation; its metrics.
    """

    source: Source
    suites: Sequence[Suite]
    learner: Learner
    train: Any
    eval: Any
    position: int
    record: Callable[[int, dict[str, float]], None]
    keep_samples: Callable[[int, list[Rollout], StepResult], None]
    save: Callable[[int], None]
    save_due: Callable[[int, dict[str, float]], bool] = field(default=lambda step, metrics: False)
    release: Callable[[], None] = field(default=lambda: None)
    stop_requested: Callable[[], bool] = field(default=lambda: False)
    probe: Callable[[], dict[str, float]] = field(default=dict)


def train(run: Run) -> int:
    """Sample, grade, credit, update, record; evaluate and save when due.

    Returns:
        the number of updates done: ``train.steps``, or fewer where the run was asked to stop (it has then saved).
    """
    done = saved = run.position
    version, stopping = run.learner.policy.version, False
    try:
        if done == 0:
            run.record(0, evaluation(run) | run.probe())
        while done < run.train.steps and not stopping:
            metrics, seconds = one_step(run, done + 1)
            done, version = done + 1, run.learner.policy.version
            run.record(done, metrics | seconds)
            stopping = run.stop_requested()
            save_due = run.save_due(done, metrics)
            if done == run.train.steps or stopping or save_due:
                run.save(done)
                saved = done
    except Interrupted:  # within a step; before its update the weights are still those of the step before
        if saved < done and version == run.learner.policy.version and not run.train.sample_ahead:
            run.save(done)
    return done


def one_step(run: Run, step: int) -> tuple[dict[str, float], dict[str, float]]:
    """One step's metrics, and its seconds by phase."""
    config, sampler = run.train, run.source.sampler
    seconds, begin = dict[str, float](), perf_counter()
    synced = sampler.synced()
    with clock(seconds, "time/rollout_s"):
        draw = run.source.take(step)
        run.source.begin(step + 1)
    seconds |= draw.seconds
    run.release()
    signals = signals_of(draw.rollouts, step, run.learner.policy.special_ids, run.source.exact)
    lr = learning_rate(config, step)
    result = learn(run.learner, draw.rollouts, signals, lr)
    metrics = run.source.metrics(draw) | result.metrics
    metrics |= {"policy/lr": lr, "rollout/staleness": float(run.source.staleness)}
    run.keep_samples(step, draw.rollouts, result)
    if step == config.steps or due(step, config.eval_every):
        with clock(seconds, "time/evaluation_s"):
            metrics |= evaluation(run)
    synced_s, synced_bytes = sampler.synced()
    if synced_bytes > synced[1]:  # evaluations sync too
        seconds["time/sync_s"] = synced_s - synced[0]
        metrics["engine/sync_gb"] = (synced_bytes - synced[1]) / 1e9
    seconds["time/step_s"] = perf_counter() - begin
    if "time/wait_s" in seconds:
        seconds["time/wait_share"] = seconds["time/wait_s"] / seconds["time/step_s"]
    return metrics, seconds


def due(step: int, every: int) -> bool:
    """True at every ``every``-th step; never if ``every`` is 0."""
    return every > 0 and step % every == 0


def evaluation(run: Run) -> dict[str, float]:
    """The held-out metrics at the current weights."""
    run.source.settled()
    return evaluate(
        run.suites, run.eval.samples_per_prompt, Sampling(run.eval.temperature, run.eval.top_p, run.eval.top_k)
    )


def learning_rate(config: Any, step: int) -> float:
    """Learning rate at ``step`` (from 1): linear warm-up, then constant, or falling linearly
    or by a cosine toward the 0 that would come one step after the last."""
    if step <= config.warmup_steps:
        return float(config.lr * step / config.warmup_steps)
    if config.lr_schedule == "constant":
        return float(config.lr)
    progress = (step - config.warmup_steps - 1) / max(1, config.steps - config.warmup_steps)
    if config.lr_schedule == "linear":
        return float(config.lr * (1 - progress))
    return float(config.lr * 0.5 * (1 + math.cos(math.pi * progress)))
