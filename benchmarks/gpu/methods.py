"""Every method on a card: three updates beside the recorded ones, two steps from the command line, and whether it learns."""

from __future__ import annotations

import json
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

from benchmarks.gpu.checks import command
from tests.golden.world import HERE, three_updates
from tests.helpers import METHODS

NEAR, LATER = 1e-4, 1e-2
"""Largest distance of a metric from the recorded one at the first update and at the third, as a share of its size or of 1."""
BESIDE = (
    "method=rlrt model.lora=4", "method=grpo train.kl_coef=0.1", "method=rlrt train.minibatches=2",
    "method=sd teacher.weights=ema", "method=rlrt train.token_budget=150", "method=grpo dtype=float32",
)  # fmt: skip
"""Run beside every method."""
TOGETHER = 6
"""Runs at a time."""


def far(now: float, then: float) -> float:
    """How far a metric is from the recorded one, as a share of its size, or of 1 if that is larger."""
    if math.isnan(now) and math.isnan(then):
        return 0.0
    return abs(now - then) / max(1.0, abs(then))


def golden(device: str) -> tuple[bool, str]:
    """Three updates of every method on the committed rollouts in full float32, beside those recorded on a CPU.

    The first update must agree; Adam divides each gradient by its size, so rounding grows from one update to the next.
    """
    worst = dict.fromkeys((1, 2, 3), (0.0, "none"))
    with patch("rlrt.execution.build.use_tensor_cores"):  # TF32 stays off
        for method in METHODS:
            recorded = json.loads((HERE / f"{method}.json").read_text())["steps"]
            now = three_updates(method, f"device={device}", "dtype=float32")
            for step, (found, expected) in enumerate(zip(now, recorded, strict=True), 1):
                distances = [(far(found[name], value), f"{method}'s {name}") for name, value in expected.items()]
                worst[step] = max([worst[step], *distances])
    said = "; ".join(f"update {step} {distance:.1e} ({name})" for step, (distance, name) in worst.items())
    return worst[1][0] < NEAR and worst[3][0] < LATER, f"{len(METHODS)} methods, farthest: {said}"


def every_method(device: str) -> tuple[bool, str]:
    """Two steps of every method from the command line, with a checkpoint after each: finite numbers."""
    cases = [f"method={m}" + " train.rollouts_per_prompt=1" * (m == "sft") for m in METHODS] + list(BESIDE)

    def tried(number: int, case: str, place: Path) -> str:
        words = [f"device={device}", "train.steps=2", "train.save_every=1", *case.split()]
        try:
            _, rows = command(place / str(number), *words)
        except Exception as error:
            return f"{case}: {error}"
        finite = all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
        return "" if len(rows) == 3 and finite else f"{case}: {len(rows)} records, {'' if finite else 'not '}finite"

    with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(TOGETHER) as pool:
        found = [*pool.map(lambda pair: tried(*pair, Path(made)), enumerate(cases))]
    wrong = [line for line in found if line]
    return not wrong, f"{len(cases) - len(wrong)} of {len(cases)} cases" + "".join(f"; {line}" for line in wrong)


def learns(device: str, steps: int = 30) -> tuple[bool, str]:
    """RLRT on the embedded model and its task in bfloat16: avg@8 of held-out prompts before and after."""
    bigger = [f"train.steps={steps}", "train.prompts_per_step=8", "train.rollouts_per_prompt=8", "train.eval_every=0"]
    bigger += ["eval.prompts=32", "eval.samples_per_prompt=8", f"device={device}"]
    with tempfile.TemporaryDirectory() as made:
        _, rows = command(Path(made) / "run", *bigger)
    before, after = (row["eval/avg_at_8"] for row in rows if "eval/avg_at_8" in row)
    gap = max(row.get("sampler/logp_gap_abs_mean", 0.0) for row in rows)
    return after > before + 0.1, f"{before:.3f} -> {after:.3f} in {steps} steps; mean |log-probability gap| {gap:.4f}"
