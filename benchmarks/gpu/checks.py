"""Checks of a card, each pass or fail with the number that decides."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlrt.model import packed
from rlrt.model.forward import Row, plain_hidden, response_hidden
from rlrt.model.head import product
from rlrt.model.precision import set_compute_dtype

SMALL = (
    "tracking=none", "train.prompts_per_step=4", "train.rollouts_per_prompt=4", "train.eval_every=0", "eval.prompts=4",
    "eval.samples_per_prompt=2",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Attributes:
        name: of the check.
        passed: None: it could not be tried here.
        said: the number or the reason.
    """

    name: str
    passed: bool | None
    said: str

    def __str__(self) -> str:
        word = {True: "pass", False: "FAIL", None: "not tried"}[self.passed]
        return f"{word:9} {self.name}: {self.said}"


def tried(name: str, check: Callable[[], tuple[bool, str]]) -> Outcome:
    """A check whose exception is a failure."""
    try:
        passed, said = check()
    except Exception as error:
        return Outcome(name, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return Outcome(name, passed, said)


def head(device: torch.device) -> tuple[bool, str]:
    """Logits are float32 sums of bfloat16 products."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (2 * torch.randn(n, 2048, generator=generator) for n in (256, 8192))
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    exact = hidden.double() @ weight.double().t()
    got = product(hidden.to(device), weight.to(device)).double().cpu()
    off = float((got - exact).abs().max() / exact.abs().max())
    return off < 1e-5, f"largest error {off:.1e} of the largest logit (rounded to bfloat16 it is about 4e-3)"


def attention(model: Any, precision: torch.dtype, tolerance: float) -> tuple[bool, str]:
    """Packed rows, each prompt once, give the hidden states of transformers' own padded pass."""
    set_compute_dtype(model, precision)
    generator = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randint(3, model.config.vocab_size, (count,), generator=generator).tolist()  # noqa: E731
    prompts = [draw(40), draw(25)]
    rows = [Row(prompts[i % 2], draw(30 + 7 * i)) for i in range(6)]
    with torch.no_grad():
        quick = response_hidden(model, rows).float()
        plain = plain_hidden(model, rows).float()
    off = float((quick - plain).abs().max() / plain.abs().max())
    return off < tolerance, f"largest difference {off:.1e} of the largest entry; packed: {packed.enabled(model)}"


def command(folder: Path, *overrides: str) -> tuple[str, list[dict[str, Any]]]:
    """A run from the command line: what it printed, and its record."""
    words = [sys.executable, "-m", "rlrt.run", *SMALL, *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return done.stdout, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record without wall-clock figures."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def three_steps(device: str) -> tuple[bool, str]:
    """Three steps of RLRT on the embedded model, from the command line: finite numbers, and the first line names the card."""
    with tempfile.TemporaryDirectory() as made:
        printed, rows = command(Path(made) / "run", f"device={device}", "train.steps=3")
    first = printed.splitlines()[0]
    finite = all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
    return finite and len(rows) == 4 and first.startswith(f"device {device}"), first


def twice(device: str) -> tuple[bool, str]:
    """Two runs under ``deterministic=true`` record the same bits."""
    with tempfile.TemporaryDirectory() as made:
        overrides = (f"device={device}", "deterministic=true", "train.steps=2", "train.minibatches=2")
        records = [numbers(command(Path(made) / str(i), *overrides)[1]) for i in range(2)]
    return records[0] == records[1], "equal" if records[0] == records[1] else "the records differ"


def memory(estimated: int, measured: int) -> tuple[bool, str]:
    """Preflight's estimate is within a tenth of what was measured."""
    ratio = estimated / measured
    return (
        0.9 <= ratio <= 1.1,
        f"preflight {estimated / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB, ratio {ratio:.2f}",
    )


def sleep_and_wake(device: str) -> tuple[bool, str]:
    """vLLM in the trainer's process sleeps during three updates and takes its memory again."""
    overrides = (
        f"device={device}",
        "engine=vllm",
        "engine.release_memory=true",
        "engine.max_model_len=128",
        "train.steps=3",
    )
    with tempfile.TemporaryDirectory() as made:
        _, rows = command(Path(made) / "run", *overrides)
    gap = max(row.get("sampler/logp_gap_abs_mean", 0.0) for row in rows)
    return len(
        rows
    ) == 4 and gap < 0.05, f"{len(rows) - 1} updates; mean |log-probability gap| to the trainer {gap:.3f}"
