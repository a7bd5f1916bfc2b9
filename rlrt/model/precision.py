"""Precision of a forward pass: weights and optimiser are float32; ``dtype=bfloat16`` computes in it under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch


def set_compute_dtype(model: Any, dtype: torch.dtype) -> None:
    """Note on the model what its forward passes compute in; copies of the model keep it."""
    model.compute_dtype = dtype


def computing(model: Any) -> AbstractContextManager[Any]:
    """The context for any forward pass of ``model``, of the engine and of the trainer alike."""
    dtype = getattr(model, "compute_dtype", torch.float32)
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)
