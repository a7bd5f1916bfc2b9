"""A run's peak memory as ``rlrt.execution.memory`` says it and as the system measures it: ``python -m benchmarks.peak``.

Two steps of an 18.9M-parameter Qwen3 with random weights on countdown, each case in a process of its own, one after the other.
The entropy bonus touches every rollout, so the update is a whole one. The table is for docs/preflight.md.

``--paths`` measures instead every way to save memory that a CPU can run, with 63M weights and one small step;
``--loading`` what two processes take while they build sharded models of 101M weights. Both measure another checkout too, given
as ``--checkout FOLDER``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed.case import random_qwen3, small
from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.execution.memory.estimate import Layout, estimate
from rlrt.execution.memory.lengths import lengths_of
from rlrt.preflight.model import builder_of, context_of, model_sizes

FIXED = [
    "method=entropy",
    "tracking=none",
    "train.steps=2",
    "train.eval_every=0",
    "eval.prompts=4",
    "train.lr=1e-12",
    "device=cpu",
    "threads=1",
    "engine.max_new_tokens=48",
    "train.token_budget=8192",
]
SETTINGS = {
    "as it is": [],
    "recomputed": ["model.gradient_checkpointing=true"],
    "twice as long, a copy of the model": ["engine.max_new_tokens=96", "teacher.weights=ema"],
}


PATHS = {
    "plain": [],
    "model.gradient_checkpointing=true": ["model.gradient_checkpointing=true"],
    "train.offload=optimiser (on a CPU: nothing)": ["train.offload=optimiser"],
    "model.offload_activations=true (on a CPU: nothing)": [
        "model.gradient_checkpointing=true",
        "model.offload_activations=true",
    ],
    "teacher frozen, KL reference": ["teacher.weights=frozen", "train.kl_coef=0.1"],
    "model.lora=16": ["model.lora=16"],
    "model.lora=16, teacher frozen, KL reference": ["model.lora=16", "teacher.weights=frozen", "train.kl_coef=0.1"],
    "model.lora=16, teacher.weights=ema": ["model.lora=16", "teacher.weights=ema"],
}
"""Ways through one process."""
SHARDED = {
    "distributed.strategy=ddp, 2 processes": ["distributed.strategy=ddp"],
    "distributed.strategy=fsdp, 2 processes": ["distributed.strategy=fsdp"],
    "fsdp, 2 processes, teacher frozen, KL reference": [
        "distributed.strategy=fsdp",
        "teacher.weights=frozen",
        "train.kl_coef=0.1",
    ],
}
"""Ways through two processes; what is measured is the larger one."""
FEW = ["train.steps=1", "train.prompts_per_step=2", "eval.prompts=2", "eval.samples_per_prompt=1"]
"""A single step of few rollouts: the memory of weights decides, not that of activations."""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HERE = Path(__file__).parents[1]


def measured(words: list[str], processes: int = 1, checkout: Path = HERE) -> int:
    """Bytes of resident memory of a run's largest process, at their most."""
    with tempfile.TemporaryDirectory() as place, (Path(place) / "out").open("w") as out:
        start = TORCHRUN if processes > 1 else []
        command = [sys.executable, *start, "-m", "rlrt.run", *words, f"hydra.run.dir={place}/run"]
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=place, env=environment(checkout))
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit((Path(place) / "out").read_text())
        return used.ru_maxrss * 1024


def environment(checkout: Path) -> dict[str, str]:
    """The environment of a process that imports rlrt from a checkout."""
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


def paths(checkout: Path, word: str) -> None:
    """Measure the ways to save memory whose names hold ``word``, and print."""
    print("| case | peak GB of a process |\n|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = random_qwen3(Path(place), hidden=1024, inner=3072, layers=5, heads=16, key_heads=8)
        for cases, processes in ((PATHS, 1), (SHARDED, 2)):
            for name, more in ((n, m) for n, m in cases.items() if word in n):
                found = measured([*FIXED, *FEW, *more, f"model.path='{folder}'"], processes, checkout)
                print(f"| {name} | {found / 1e9:.2f} |", flush=True)


def loading(checkout: Path) -> None:
    """Measure what two processes take while they build sharded models, and print."""
    cases = {
        "student": [],
        "student, teacher, reference": ["method=sd", "teacher.weights=ema", "train.kl_coef=0.1"],
        "student, teacher, reference, model.lora=16": [
            "method=sd", "teacher.weights=ema", "train.kl_coef=0.1", "model.lora=16",
        ],
    }  # fmt: skip
    print("| models | peak above the start, MB | own memory then, MB | pages of files then, MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = random_qwen3(Path(place), hidden=1024, inner=3072, layers=8, heads=16, key_heads=8)
        for name, more in cases.items():
            words = ["device=cpu", "tracking=none", "distributed.strategy=fsdp", f"model.path='{folder}'", *more]
            command = [sys.executable, *TORCHRUN, str(HERE / "benchmarks" / "loading.py"), *words]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=place, env=environment(checkout)
            )
            ranks = re.findall(r"rank \d: (\d+) (\d+) (\d+)", done.stdout)
            if not ranks:
                raise SystemExit(done.stderr)
            row = [" and ".join(column) for column in zip(*ranks, strict=True)]
            print(f"| {name} | {' | '.join(row)} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", action="store_true", help="every way to save memory")
    parser.add_argument("--loading", action="store_true", help="two processes that build sharded models")
    parser.add_argument("--checkout", type=Path, default=HERE, help="the checkout whose rlrt is measured")
    parser.add_argument("--only", default="", help="of --paths those with this word in their names")
    given = parser.parse_args()
    if given.paths:
        return paths(given.checkout.resolve(), given.only)
    if given.loading:
        return loading(given.checkout.resolve())
    print("| case | estimated GB | in | measured GB | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = small(Path(place))
        for name, more in SETTINGS.items():
            words = [*FIXED, *more, f"model.path='{folder}'"]
            settings = load(composed(words))
            settings.data.prepare()
            prompts = [*settings.data.train, *settings.data.heldout]
            lengths, _ = lengths_of(settings, prompts, builder_of(settings), context_of(settings))
            said = estimate(model_sizes(settings), settings, lengths, Layout("cpu"))
            found = measured(words)
            row = f"{said.peak / 1e9:.2f} | {said.worst} | {found / 1e9:.2f} | {said.peak / found:.2f}"
            print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
