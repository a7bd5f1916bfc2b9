"""The output layer: logits in float32, also where everything before it computes in bfloat16.

D, entropies and ratios are differences of log-probabilities. Rounded to bfloat16, a logit between 16 and 32 is off by up to
.06, and most |D| are below .1. So the products of bfloat16 inputs are summed and kept in float32, in trainer and sampler alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlrt.model.precision import computing, dtype_of


class Float32Product(torch.autograd.Function):
    """``h @ W.T`` of bfloat16 inputs, summed and kept in float32, on CUDA, without a float32 copy of W."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
        """logits_NV, float32."""
        ctx.save_for_backward(hidden_NH, weight_VH)
        return torch.mm(hidden_NH, weight_VH.t(), out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both inputs, bfloat16 as they are."""
        hidden_NH, weight_VH = ctx.saved_tensors
        gradient_NV = gradients[0].to(hidden_NH.dtype)
        return gradient_NV @ weight_VH, gradient_NV.t() @ hidden_NH


def product(hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
    """logits_NV in float32 from inputs of one precision; the CPU has no such product of bfloat16 and computes it in float32."""
    if hidden_NH.dtype == torch.float32:
        return torch.nn.functional.linear(hidden_NH, weight_VH)
    if hidden_NH.device.type == "cuda":
        logits_NV: Tensor = Float32Product.apply(hidden_NH, weight_VH)
        return logits_NV
    return hidden_NH.float() @ weight_VH.float().t()


def head_logits(model: Any, hidden_NH: Tensor) -> Tensor:
    """Logits of a model's output layer over the whole vocabulary, float32."""
    head, dtype = model.get_output_embeddings(), dtype_of(model)
    if (
        dtype == torch.float32 or head.bias is not None or not isinstance(head, torch.nn.Linear)
    ):  # an adapted head is none
        with computing(model):
            logits_NV: Tensor = head(hidden_NH)
        return logits_NV.float()
    return product(hidden_NH.to(dtype), head.weight.to(dtype))
