"""Precision of forward passes: weights and optimiser are float32; ``dtype=bfloat16`` computes in bfloat16 under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch


def set_compute_dtype(model: Any, dtype: torch.dtype) -> None:
    """Store the precision of forward passes on the model; copies of the model inherit it."""
    model.compute_dtype = dtype


def dtype_of(model: Any) -> torch.dtype:
    """Return the precision of a model's forward passes."""
    dtype: torch.dtype = getattr(model, "compute_dtype", torch.float32)
    return dtype


def computing(model: Any) -> AbstractContextManager[Any]:
    """Return the autocast context for any forward pass of ``model``, in the engine and the trainer alike."""
    dtype = dtype_of(model)
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)
