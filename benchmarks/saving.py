"""How long training stands still for a checkpoint: ``python benchmarks/saving.py [--weights 100]``; figures go to docs.

A random Qwen3 of about so many million weights with AdamW's moments is saved three times (the first save also makes the model's
small files): with ``train.save_async``, without it, and as before, by ``safetensors.save_file`` and a second reading for the
SHA-256. Prints seconds that the caller waits, seconds until the checkpoint is complete, and what memory grew by.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))
from rlrt.execution.build import build_learner
from rlrt.execution.saver import Saver
from rlrt.execution.snapshot import trainer_tensors
from rlrt.execution.stop import Pace
from rlrt.training.learner import Learner
from tests.helpers import settings

SAVES = 3


def learner_with(millions: int) -> Learner:
    """A learner whose model is a random Qwen3 of so many million weights, after one optimiser step."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    learner = build_learner(settings("train.steps=100"))
    width = 64 * round(math.sqrt(millions * 1e6 / (12 * 8)) / 64)  # about 12 x width^2 weights a layer, 8 layers
    config = Qwen3Config(
        vocab_size=1000, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=8,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, head_dim=64,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    learner.policy.model, learner.teacher._student = model, model
    learner.policy.optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.policy.optimiser.step()
    learner.policy.optimiser.zero_grad()
    return learner


def as_before(learner: Learner, folder: Path) -> None:
    """Whole tensors, synced, and read again for their digests."""
    folder.mkdir()
    model = {n: p.detach().contiguous() for n, p in learner.policy.model.named_parameters()}
    optimiser = {n: t.detach().contiguous() for n, t in trainer_tensors(learner, weights=False).items()}
    for name, tensors in (("model", model), ("optimiser", optimiser)):
        file = folder / f"{name}.safetensors"
        save_file(tensors, file)
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        with file.open("rb") as handle:
            hashlib.file_digest(handle, "sha256").hexdigest()


def measured(make: Callable[[Learner, Path], Callable[[int], Callable[[], None]]], millions: int) -> None:
    """Print a way's figures, from a process of its own: memory that was used once is not given back."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    learner = learner_with(millions)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir=".") as place:
        save = make(learner, Path(place))
        for number in range(1, SAVES + 1):
            begin = time.perf_counter()
            rest = save(number)
            stopped = time.perf_counter() - begin
            rest()
            whole = time.perf_counter() - begin
            print(f"    save {number}: training stands still for {stopped:.2f} s, complete after {whole:.2f} s")
        size = sum(p.stat().st_size for p in (Path(place) / str(SAVES)).rglob("*") if p.is_file()) or sum(
            p.stat().st_size for p in (Path(place) / f"step_{SAVES}").rglob("*") if p.is_file()
        )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"    {size / 1e9:.2f} GB on disk, memory grew by {grown * 1024 / 1e9:.2f} GB", flush=True)
    os._exit(0)


def saver_of(overrides: str) -> Callable[[Learner, Path], Callable[[int], Callable[[], None]]]:
    """Checkpoints by ``Saver``."""

    def make(learner: Learner, folder: Path) -> Callable[[int], Callable[[], None]]:
        saver = Saver(learner, folder, settings("train.steps=100", overrides).train, Pace(lambda: math.inf))

        def save(number: int) -> Callable[[], None]:
            saver.save(number, None)
            return saver.wait

        return save

    return make


def old_way(learner: Learner, folder: Path) -> Callable[[int], Callable[[], None]]:
    """Checkpoints as they were written before."""

    def save(number: int) -> Callable[[], None]:
        as_before(learner, folder / str(number))
        return lambda: None

    return save


def main() -> None:
    """Print the figures of each way."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", type=int, default=100, help="millions of weights")
    millions = parser.parse_args().weights
    for name, make in (
        ("as before: whole tensors, read again for their digests", old_way),
        ("train.save_async=false", saver_of("train.save_async=false")),
        ("train.save_async=true", saver_of("train.save_async=true")),
    ):
        print(name, flush=True)
        measured(make, millions)


if __name__ == "__main__":
    main()
