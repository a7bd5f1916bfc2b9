"""One side of a comparison: this framework's own loop, a step for every line on standard input."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from benchmarks.speed.case import Case, settings_of
from benchmarks.speed.sides import peak_memory
from rlrt.execution.build import build_learner
from rlrt.execution.memory.budget import fixed, settled
from rlrt.sampling.sampler import Sampler
from rlrt.sampling.source import Source
from rlrt.training.loop import Run, train


def main(case: Case, method: str, overrides: list[str]) -> None:
    """Say ``ready``; then run a step for each line and answer with a line of figures."""
    torch.set_num_threads(case.threads)
    settings = settings_of(case, f"method={method}", *overrides)
    learner = build_learner(settings)
    if settings.train.token_budget == "auto":
        prompts = settings.data.train[:1000]
        tokens = settled(settings, learner.policy.model, prompts, learner.builder, learner.context_length, 1)
        settings = fixed(settings, tokens)
        learner.train = settings.train

    def record(step: int, metrics: dict[str, float]) -> None:
        figures: dict[str, Any] = {
            "seconds": metrics["time/step_s"],
            "length": metrics["rollout/length_mean"],
            "no_signal": metrics["group/no_signal_share"],
            "skipped": metrics["policy/skipped_share"],
            "peak": peak_memory(),
            "phases": {k: v for k, v in metrics.items() if k.startswith("time/")},
        }
        print(json.dumps(figures), flush=True)
        if not sys.stdin.readline():
            sys.exit(0)

    sampler = Sampler(settings.engine, learner.policy, learner.builder, settings.data, seed=0)
    print("ready", flush=True)
    sys.stdin.readline()
    train(
        Run(
            source=Source(sampler, settings.train, 0, first=2),
            suites=[],
            learner=learner,
            train=settings.train,
            eval=settings.eval,
            position=1,  # no evaluation of the start
            record=record,
            keep_samples=lambda step, rollouts, result: None,
            save=lambda step: None,
        )
    )


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(Case(**arguments["case"]), arguments["method"], arguments.get("overrides", []))
