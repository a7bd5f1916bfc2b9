"""What lies in the host's memory in between changes no number, and leaves the card: first thing to try on one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.checks import command, numbers
from rlrt.model.offload import Moments

HOST = ("train.offload=optimiser", "model.offload_activations=true")


def same_numbers(device: str) -> tuple[bool, str]:
    """Two steps with moments and layers' inputs in the host's memory record the bits of two steps without."""
    with tempfile.TemporaryDirectory() as made:
        plain = (f"device={device}", "deterministic=true", "train.steps=2", "model.gradient_checkpointing=true")
        records = [numbers(command(Path(made) / str(i), *plain, *more)[1]) for i, more in enumerate(((), HOST))]
    return records[0] == records[1], "equal" if records[0] == records[1] else "the records differ"


def moments_leave(device: torch.device, weights: int = 2**26) -> tuple[bool, str]:
    """Resting moments give up 8 bytes a weight of the card, and come back as they were."""
    weight = torch.nn.Parameter(torch.ones(weights, device=device))
    optimiser = torch.optim.AdamW([weight], lr=1e-3)
    weight.grad = torch.ones_like(weight)
    optimiser.step()
    before = optimiser.state[weight]["exp_avg"].sum()
    moments, held = Moments(optimiser), allocated(device)
    moments.rest()
    given_up = held - allocated(device)
    moments.wake()
    same = bool(optimiser.state[weight]["exp_avg"].sum() == before)
    expected = 8 * weights if device.type == "cuda" else 0
    return (
        same and given_up == expected,
        f"{given_up / 1e9:.2f} GB given up, {'the same' if same else 'other'} moments after",
    )


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a card; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
