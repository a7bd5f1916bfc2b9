"""Golden runs: three updates of every method on committed rollouts, and loss values in float64.

``python -m tests.golden.world NAME ...`` records those files anew (a method, ``losses``, ``rollouts``, or ``all``) and leaves
the others as they are; do that for a new method, or with a change that is meant to change numbers, and say so in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlrt.execution.build import build_learner
from rlrt.methods.entropy import entropy
from rlrt.methods.grpo import clipped_loss, group_advantage
from rlrt.methods.rlrt import teacher_weight
from rlrt.methods.sdpo import divergence, with_tail
from rlrt.sampling.sampler import Sampler
from rlrt.training.batch import signals_of
from rlrt.training.update import learn
from rlrt.types import Generation, Grade, Rollout
from tests.helpers import METHODS, settings

HERE = Path(__file__).parent
STEPS, PROMPTS, SAMPLES = 3, 4, 6


def machine() -> str:
    """What bit-identity depends on: the processor's features and torch's build."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [
        m[0]
        for m in (re.search(rf"^{k}\s*:.*$", info, re.M) for k in ("model name", "model", "stepping", "flags"))
        if m
    ]
    build = torch.__version__ + torch.backends.cpu.get_cpu_capability()
    return hashlib.sha256("\n".join([*lines, build]).encode()).hexdigest()[:16]


def config(method: str, *overrides: str) -> Any:
    """Two mini-batches, so that old and new weights differ; a moving teacher where the method has one."""
    more = ["teacher.weights=ema"] if method == "sd" else []
    return settings(f"method={method}", "train.minibatches=2", "train.lr=1e-3", *more, *overrides)


def record_rollouts() -> list[dict[str, Any]]:
    """Rollouts of the embedded model, as plain values."""
    made = config("grpo")
    made.data.prepare()
    learner = build_learner(made)
    sampler = Sampler(made.engine, learner.policy, learner.builder, made.data, seed=11)
    return [
        {
            "prompt": made.data.train.index(r.prompt),
            "group": r.group,
            "sample": r.sample,
            "seed": r.seed,
            "text": r.text,
        }
        | {"prompt_ids": r.prompt_ids, "token_ids": r.generation.token_ids, "truncated": r.generation.truncated}
        | {"correct": r.grade.correct, "reward": r.grade.reward}
        for r in sampler(made.data.train[:PROMPTS], SAMPLES, ("golden",))
    ]


def committed_rollouts(task: Any) -> list[Rollout]:
    """The committed rollouts; engine log-probabilities are left out, as no update reads them."""
    rollouts = []
    for r in json.loads((HERE / "rollouts.json").read_text()):
        zeros = torch.zeros(len(r["token_ids"]))
        generation = Generation(r["token_ids"], zeros, zeros, r["truncated"])
        grade = Grade(r["correct"], r["reward"])
        prompt = task.train[r["prompt"]]
        rollouts.append(
            Rollout(prompt, r["group"], r["sample"], r["seed"], r["prompt_ids"], generation, r["text"], grade)
        )
    return rollouts


def three_updates(method: str, *overrides: str) -> list[dict[str, float]]:
    """Metrics of three updates."""
    made = config(method, *overrides)
    made.data.prepare()
    learner = build_learner(made)
    rollouts = committed_rollouts(made.data)
    steps = range(1, STEPS + 1)
    updates = [
        learn(learner, rollouts, signals_of(rollouts, s, learner.policy.special_ids), 1e-3).metrics for s in steps
    ]
    return [{k: v for k, v in metrics.items() if not k.startswith("time/")} for metrics in updates]


def loss_values() -> dict[str, list[float]]:
    """Every loss and credit function on fixed inputs in float64."""
    x = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    student, teacher = (1.7 * x.sin()).log_softmax(-1), (1.3 * (x + 0.5).cos()).log_softmax(-1)
    reward, group = torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 1.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1, 0, 1])
    sign = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    values = {
        "group_advantage": group_advantage(reward, group, True),
        "group_advantage_centred": group_advantage(reward, group, False),
        "clipped_loss": clipped_loss(student, teacher, x.cos(), 0.2, 0.28),
        "entropy": entropy(student),
        "teacher_weight_reversed": teacher_weight(student - teacher, sign, 0.5, True),
        "teacher_weight_forward": teacher_weight(student - teacher, sign, 0.5, False),
        "tail": with_tail(student, student.topk(2, -1).indices),
    }
    values |= {f"divergence_{a}": divergence(student, teacher, a) for a in (0.0, 0.25, 0.5, 1.0)}
    return {name: value.flatten().tolist() for name, value in values.items()}


NAMES = ("rollouts", "losses", *METHODS)
"""What is recorded, in this order: the methods' updates are made on the recorded rollouts."""


def recorded(name: str) -> str:
    """The text of a golden file."""
    if name == "rollouts":
        return "[\n" + ",\n".join(json.dumps(r) for r in record_rollouts()) + "\n]\n"
    if name == "losses":
        return json.dumps(loss_values(), indent=1) + "\n"
    golden = {"machine": machine(), "torch": torch.__version__, "steps": three_updates(name)}
    return json.dumps(golden, indent=1) + "\n"


def main(arguments: Sequence[str], folder: Path = HERE) -> None:
    """Record what is named, and nothing else."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.world", description=main.__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*NAMES, "all"], help=", ".join([*NAMES, "all"]))
    asked = parser.parse_args(arguments).names
    torch.set_num_threads(1)
    for name in NAMES if "all" in asked else [n for n in NAMES if n in asked]:
        (folder / f"{name}.json").write_text(recorded(name))
        print(folder / f"{name}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
