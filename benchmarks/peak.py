"""A run's peak memory as ``rlrt.execution.memory`` says it and as the system measures it: ``python -m benchmarks.peak``.

Two steps of an 18.9M-parameter Qwen3 with random weights on countdown, each case in a process of its own, which waits for no
other; the entropy bonus touches every rollout, so the update is a whole one. The table is for docs/preflight.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed.case import small
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


def measured(words: list[str]) -> int:
    """Bytes of resident memory of a run, at their most."""
    with tempfile.TemporaryDirectory() as place, (Path(place) / "out").open("w") as out:
        command = [sys.executable, "-m", "rlrt.run", *words, f"hydra.run.dir={place}/run"]
        process = subprocess.Popen(command, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit((Path(place) / "out").read_text())
        return used.ru_maxrss * 1024


def main() -> None:
    """Measure and print."""
    print("| case | estimated GB | in | measured GB | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = small(Path(place))
        for name, more in SETTINGS.items():
            words = [*FIXED, *more, f"model.path='{folder}'"]
            settings = load(composed(words))
            settings.data.prepare()
            lengths, _ = lengths_of(
                settings, settings.data.train + settings.data.heldout, builder_of(settings), context_of(settings)
            )
            said = estimate(model_sizes(settings), settings, lengths, Layout("cpu"))
            found = measured(words)
            row = f"{said.peak / 1e9:.2f} | {said.worst} | {found / 1e9:.2f} | {said.peak / found:.2f}"
            print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
