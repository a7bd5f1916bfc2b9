"""What a card must show of the output layer over chunks of tokens (``rlrt.model.head.OverTokens``), which never ran on one."""

from __future__ import annotations

import argparse

import torch

from benchmarks.head import Head, measured
from rlrt.methods.entropy import entropy
from rlrt.model.forward import over_tokens
from rlrt.model.precision import set_compute_dtype


def gradients(
    dtype: torch.dtype, device: torch.device, inputs: tuple[torch.Tensor, torch.Tensor]
) -> list[torch.Tensor]:
    """Results and gradients of hidden states and weight, in five chunks, on the CPU."""
    hidden, weight = inputs
    model = Head(len(weight), weight.shape[1], device)
    model.lm_head.weight.data = weight.clone().to(device)
    set_compute_dtype(model, dtype)
    hidden_NH = hidden.clone().to(device).requires_grad_()
    token_N = (torch.arange(len(hidden)) % len(weight)).to(device)

    def compute(logp_CV: torch.Tensor, where: slice) -> tuple[torch.Tensor, ...]:
        return logp_CV.gather(-1, token_N[where, None])[:, 0], entropy(logp_CV)

    columns = over_tokens(model, hidden_NH, 0.7, compute, len(weight) * -(-len(hidden) // 5))
    weights_N = torch.linspace(-1, 1, len(hidden), device=device)
    (weights_N * (columns[0] + columns[1])).sum().backward()
    found = [*(c.detach() for c in columns), hidden_NH.grad, model.lm_head.weight.grad]
    assert all(x is not None for x in found)
    return [x.double().cpu() for x in found if x is not None]


def agrees(device: torch.device) -> tuple[bool, str]:
    """Values and gradients in bfloat16 agree with float32 on the CPU from the same rounded inputs: what is left is the rounding
    of the logits' gradient."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(n, 512, generator=generator).bfloat16().float() / 8 for n in (640, 8192))
    exact = gradients(torch.float32, torch.device("cpu"), (inputs[0], inputs[1]))
    found = gradients(torch.bfloat16, device, (inputs[0], inputs[1]))
    off = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True)]
    values, slopes = max(off[:2]), max(off[2:])
    passed = values < 1e-4 and slopes < 2**-7
    return passed, f"log-probabilities and entropies off by {values:.1e}, gradients by {slopes:.1e}, of the largest"


def cost(device: torch.device) -> tuple[bool, str]:
    """One micro-batch of Qwen3-8B's output layer: seconds, and memory beside weight, gradient and hidden states.

    By sums it holds, beside logits of 883 tokens (three tensors of .54 GB), one cast weight (1.24 GB), one gradient (2.49 GB)
    and the gradient of the hidden states (.27 GB): 5.6 GB. More than 6.5 means that something is held twice.
    """
    large = device.type == "cuda"
    given = argparse.Namespace(
        vocabulary=151_936 if large else 2000,
        hidden=4096 if large else 64,
        tokens=16_384 if large else 256,
        dtype="bfloat16",
        entropy=False,
        device=str(device),
        threads=torch.get_num_threads(),
        repeats=3,
    )
    found = measured(given)
    gigabytes = found["mib"] * 2**20 / 1e9
    rate = 8 * given.tokens * given.vocabulary * given.hidden / found["update_s"] / 1e12
    said = f"{found['scoring_s']} s without gradient, {found['update_s']} s with it ({rate:.0f} TFLOP/s), {gigabytes:.2f} GB"
    return gigabytes < 6.5, said
