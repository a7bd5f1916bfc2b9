"""Checks of a vLLM server on a card of its own: it starts, NCCL brings the weights that files bring, it ends."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.checks import Outcome
from rlrt.engines.vllm_server import VllmServerEngine
from rlrt.model.load import load
from rlrt.model.precision import set_compute_dtype
from rlrt.types import Sampling

PROMPTS = [[20 + i, *range(30, 60)] for i in range(8)]
NEAR = 0.05
"""Largest mean distance of a log-probability, nats, between two servers with the same weights, in bfloat16."""


def missing() -> str:
    """Why nothing of this can be tried here; empty if it can."""
    if torch.cuda.device_count() < 2:
        return "needs two GPUs"
    return "" if importlib.util.find_spec("vllm") is not None else "needs vLLM"


def same_weights() -> tuple[bool, str]:
    """Trainer on card 0, server on card 1: greedy responses after a sync by NCCL and after one by file, moved weights both."""
    model = load("embedded", None, "sdpa")[0].to("cuda:0")
    set_compute_dtype(model, torch.bfloat16)
    found = {}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    for transfer in ("nccl", "file"):
        with tempfile.TemporaryDirectory() as folder:
            engine = VllmServerEngine(
                max_new_tokens=32, temperature=1.0, max_rows=8, grade_truncated=False, importance_clip=2.0, url=None,
                start=True, gpus=1, host=None, transfer=transfer, transfer_dir=None, timeout_s=600,
            )  # fmt: skip
            engine.settle(Path(folder), ["1"])
            engine.expect(64, 1.0)
            try:
                for version in (0, 1):  # the second sync goes through a group that has met
                    engine.load(model, [], version)
                drawn = list(engine.sample(PROMPTS, [[0]] * len(PROMPTS), Sampling(0.0)))
                found[transfer] = {p: g.logp_T for p, _, g in drawn}, engine.synced_bytes, engine.synced_s
            finally:
                engine.close()
    distances = [float((found["nccl"][0][p][0] - found["file"][0][p][0]).abs()) for p in range(len(PROMPTS))]
    mean = sum(distances) / len(distances)
    rates = ", ".join(f"{name} {size / 1e9:.3f} GB in {seconds:.2f} s" for name, (_, size, seconds) in found.items())
    return mean < NEAR, f"mean |log-probability of the first token, NCCL - file| {mean:.4f}; {rates}"


def outcomes(check: Callable[[str, Callable[[], tuple[bool, str]]], Any], made: list[Outcome]) -> None:
    """Every check, or why it is not tried."""
    title = "a server's weights by NCCL and by file"
    if reason := missing():
        made.append(Outcome(title, None, reason))
        print(made[-1])
    else:
        check(title, same_weights)
