"""Gradients of one update on several processes beside those of one; torchrun starts it, the main process writes FILE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlrt.distributed.sharding import whole
from rlrt.distributed.world import ALONE, connect
from rlrt.execution.build import build_learner
from rlrt.sampling.sampler import Sampler
from rlrt.training.batch import signals_of
from rlrt.training.update import learn
from tests.helpers import settings

CASES = {
    "rlrt": ("method=rlrt",),
    "rlrt, full forward passes": ("method=rlrt", "train.token_budget=100000"),
    "rlrt, adapters": ("method=rlrt", "model.lora=4"),
    "sd, adapters, moving teacher, KL": (
        "method=sd", "model.lora=4", "teacher.weights=ema", "teacher.ema_rate=0.5", "train.minibatches=2", "train.kl_coef=0.1",
    ),
    "sd, moving teacher": ("method=sd", "teacher.weights=ema", "teacher.ema_rate=0.5"),
    "sd, two mini-batches": ("method=sd", "teacher.weights=old", "train.minibatches=2"),
    "sdpg, live teacher, two mini-batches": ("method=sdpg", "method.sdpg_beta=10", "train.minibatches=2"),
    "purified, three views of the teacher": ("method=purified_opsd",),
    "grpo, KL, recomputed": ("method=grpo", "train.kl_coef=0.1", "model.gradient_checkpointing=true"),
    "dapo, two mini-batches": ("method=dapo", "train.minibatches=2", "train.max_refills=0"),
    "entropy": ("method=entropy",),
    "a single rollout touched": ("method=grpo", "one"),
}  # fmt: skip
"""By name: overrides."""


def gradients(world, overrides, strategy):
    """name -> gradient of every optimiser step; and the metrics of the update."""
    words = [o for o in overrides if o != "one"]
    config = settings(
        "train.prompts_per_step=4", "train.rollouts_per_prompt=6", "train.token_budget=300", *words,
        f"distributed.strategy={strategy}",
    )  # fmt: skip
    config.data.prepare()
    torch.manual_seed(0)
    learner = build_learner(config, world)
    alone = build_learner(settings(*words)) if world.size > 1 else learner  # both sides sample by whole weights
    rollouts = Sampler(config.engine, alone.policy, learner.builder, config.data, seed=3)(
        config.data.train[:4], 6, ("test",)
    )
    signals = signals_of(rollouts, 1, learner.policy.special_ids)
    if "one" in overrides:  # one of the processes has nothing to do, and still takes part
        kind = type(learner.method.advantage)
        only = lambda self, signals: (torch.arange(len(signals)) == 5).float()  # noqa: E731
        learner.method.advantage.__class__ = type(kind.__name__, (kind,), {"__call__": only})
    caught = []
    step = learner.policy.step

    def catch(lr, norm):
        caught.append({n: whole(p.grad).clone() for n, p in learner.policy.model.named_parameters() if p.requires_grad})
        return step(lr, norm)

    learner.policy.step = catch
    result = learn(learner, rollouts, signals, 1e-3)
    return caught, result.metrics


def main(file: str) -> None:
    torch.set_num_threads(1)
    world = connect(60.0, on_gpu=False)
    found = {}
    for name, overrides in CASES.items():
        expected, numbers = gradients(ALONE, overrides, "ddp")
        for strategy in ("ddp", "fsdp"):
            got, metrics = gradients(world, overrides, strategy)
            scale = max(float(g.abs().max()) for step in expected for g in step.values())
            apart = max(float((e[k] - g[k]).abs().max()) for e, g in zip(expected, got, strict=True) for k in e)
            far = {k: [numbers[k], metrics[k]] for k in numbers if not k.startswith("time/")}
            worst = max(abs(a - b) for a, b in far.values())
            found[f"{name}, {strategy}"] = {"scale": scale, "apart": apart, "metrics": worst, "steps": len(got)}
    if world.main:
        Path(file).write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1])
