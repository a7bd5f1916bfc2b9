"""Seconds and peak memory of the output layer alone, forward and backward: ``python -m benchmarks.head [--dtype bfloat16]``.

Random hidden states of ``--tokens`` response tokens and a random weight of ``--vocabulary`` x ``--hidden``, not tied to
anything; GRPO's result (the sampled token's log-probability) or, with ``--entropy``, an entropy bonus too. Printed: seconds (on
a CPU of its own time) of a pass without gradient and of one with it, the best of ``--repeats`` each; and mebibytes above what
the process held with weight, hidden states and gradients allocated (on CUDA torch's own peak).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from types import SimpleNamespace

import torch

from rlrt.methods.entropy import entropy
from rlrt.model.allocator import keep_freed_memory
from rlrt.model.forward import over_tokens
from rlrt.model.precision import set_compute_dtype


class Head(torch.nn.Module):
    """A model that is an output layer alone."""

    def __init__(self, vocabulary: int, hidden: int, device: torch.device) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(hidden, vocabulary, bias=False, device=device)
        self.config = SimpleNamespace(vocab_size=vocabulary)

    def get_output_embeddings(self) -> torch.nn.Linear:
        """Return the layer."""
        return self.lm_head


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=880)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--entropy", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def held(device: torch.device) -> float:
    """Peak memory so far, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(given: argparse.Namespace) -> dict[str, float]:
    """Seconds and mebibytes."""
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    torch.manual_seed(0)
    model = Head(given.vocabulary, given.hidden, device)
    set_compute_dtype(model, getattr(torch, given.dtype))
    hidden_NH = torch.randn(given.tokens, given.hidden, device=device, requires_grad=True)
    token_N = torch.randint(given.vocabulary, (given.tokens,), device=device)
    for x in (hidden_NH, model.lm_head.weight):
        x.grad = torch.zeros_like(x)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    base = held(device)

    def compute(logp_CV: torch.Tensor, where: slice) -> tuple[torch.Tensor, ...]:
        logp_C = logp_CV.gather(-1, token_N[where, None])[:, 0]
        return (logp_C, entropy(logp_CV)) if given.entropy else (logp_C,)

    clock = time.perf_counter if device.type == "cuda" else time.process_time  # of a CPU that others use too

    def seconds(gradient: bool) -> float:
        start = clock()
        with torch.set_grad_enabled(gradient):
            total = sum(x.mean() for x in over_tokens(model, hidden_NH, 1.0, compute))
        if gradient:
            total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    without = min(seconds(False) for _ in range(given.repeats))
    update = min(seconds(True) for _ in range(given.repeats))
    return {"scoring_s": round(without, 3), "update_s": round(update, 3), "mib": round(held(device) - base)}


if __name__ == "__main__":
    keep_freed_memory()
    print(json.dumps(measured(arguments())))
