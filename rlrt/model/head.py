"""The output layer: logits in float32, also where everything before it computes in bfloat16; its weight is cast once a pass.

D, entropies and ratios are differences of log-probabilities. Rounded to bfloat16, a logit between 16 and 32 is off by up to
.06, and most |D| are below .1. So the products of bfloat16 inputs are summed and kept in float32, in trainer and sampler alike,
and so is the gradient of the weight, over all tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlrt.model.precision import computing, dtype_of

Compute = Callable[[Tensor, slice], tuple[Tensor, ...]]
"""From logp_CV and the slice of the N tokens that it belongs to, to tensors of C values each."""


def factor(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A factor of the output layer's products in the precision ``dtype``.

    Rounded to bfloat16 it stays in bfloat16 on CUDA alone: a CPU has no product of bfloat16 that is summed in float32.
    """
    if dtype != torch.bfloat16:
        return x
    return x.to(dtype) if x.device.type == "cuda" else x.to(dtype).float()


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of two factors, summed and kept in float32. Factors in bfloat16 are on CUDA; autograd cannot follow them."""
    return a @ b if a.dtype != torch.bfloat16 else torch.mm(a, b, out_dtype=torch.float32)


def add_multiplied(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b`` of two factors, in place and in float32; ``total=None``: their product."""
    if total is None:
        return multiply(a, b)
    if a.dtype != torch.bfloat16:
        return total.addmm_(a, b)
    return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


def product(hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
    """logits_NV in float32 from inputs of one precision, without gradient where that is bfloat16 on CUDA."""
    hidden_NH, weight_VH = (factor(x, x.dtype) for x in (hidden_NH, weight_VH))
    return multiply(hidden_NH, weight_VH.t())


class OutputLayer:
    """A linear output layer for the length of one pass.

    Args:
        weight_VH, bias_V: its parameters.
        dtype: the precision of its products; the weight is cast to it here, once.
    """

    def __init__(self, weight_VH: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> None:
        self.weight_VH, self.bias_V, self.dtype = weight_VH, bias_V, dtype
        self.factor_VH = factor(weight_VH, dtype)

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """Logits over the whole vocabulary, float32."""
        logits_CV = multiply(factor(hidden_CH, self.dtype), self.factor_VH.t())
        return logits_CV if self.bias_V is None else logits_CV + self.bias_V


class ModuleLayer:
    """An output layer that is more than a linear layer, such as an adapted one: it runs as the module that it is."""

    def __init__(self, model: Any) -> None:
        self._model, self._module = model, model.get_output_embeddings()

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """Logits over the whole vocabulary, float32."""
        with computing(self._model):
            logits_CV: Tensor = self._module(hidden_CH)
        return logits_CV.float()


def linear(model: Any) -> torch.nn.Linear | None:
    """A model's output layer, if it is a linear layer; None: it is another module."""
    head = model.get_output_embeddings()
    return head if isinstance(head, torch.nn.Linear) else None


def output_layer(model: Any) -> OutputLayer | ModuleLayer:
    """A model's output layer for one pass; where its weight is cast, the copy lives as long as the result."""
    head = linear(model)
    return ModuleLayer(model) if head is None else OutputLayer(head.weight, head.bias, dtype_of(model))


def log_softmax(logits_CV: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) as logarithms: logp_CV."""
    return (logits_CV if temperature == 1.0 else logits_CV / temperature).log_softmax(-1)


@dataclass(frozen=True)
class Task:
    """What ``OverTokens`` computes.

    Attributes:
        compute: of a chunk's log-probabilities. They are all that its results may have a gradient of.
        chunks: slices of the N tokens, in order; at least one.
        dtype: the precision of the output layer's products.
        temperature: of the softmax.
    """

    compute: Compute
    chunks: Sequence[slice]
    dtype: torch.dtype
    temperature: float

    def run(self, layer: OutputLayer, hidden_NH: Tensor, where: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        """logp_CV as a leaf, and what is computed of it, with its graph."""
        with torch.no_grad():
            logp_CV = log_softmax(layer.logits(hidden_NH[where]), self.temperature)
        with torch.enable_grad():
            return logp_CV.requires_grad_(), self.compute(logp_CV, where)


class OverTokens(torch.autograd.Function):
    """Apply ``Task.compute`` to the log-probabilities of all tokens, chunk by chunk, forward and backward.

    Between the passes only the hidden states are kept; the backward pass makes each chunk's log-probabilities anew (a single
    chunk keeps them). The weight is cast once in each direction, and its gradient is one float32 tensor, to which every chunk
    adds in place.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, task: Task
    ) -> tuple[Tensor, ...]:
        """Tensors of N values; one that has no gradient in any chunk has none."""
        layer = OutputLayer(weight_VH, bias_V, task.dtype)
        pieces: list[list[Tensor]] = []
        differs: set[int] = set()
        ctx.kept = None
        for where in task.chunks:
            logp_CV, columns = task.run(layer, hidden_NH, where)
            if not pieces:
                refuse_other_leaves(columns, logp_CV)
            differs |= {i for i, column in enumerate(columns) if column.requires_grad}
            pieces.append([column.detach() for column in columns])
            if len(task.chunks) == 1:
                ctx.kept = logp_CV, columns
            del logp_CV, columns  # before the next chunk's are made
        outputs = tuple(torch.cat(column) for column in zip(*pieces, strict=True))
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        ctx.task = task
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(output for i, output in enumerate(outputs) if i not in differs))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias, each if it is asked for; runs once."""
        hidden_NH, weight_VH, bias_V = ctx.saved_tensors
        of_hidden, of_weight, of_bias, _ = ctx.needs_input_grad
        task, kept = ctx.task, ctx.kept
        ctx.task = ctx.kept = None  # all that ``compute`` holds is freed before the layers' backward pass
        assert task is not None, "the backward pass of OverTokens runs once"
        layer = OutputLayer(weight_VH, bias_V, task.dtype)
        gradient_NH = torch.zeros_like(hidden_NH) if of_hidden else None
        gradient_VH: Tensor | None = None
        gradient_V = torch.zeros_like(bias_V) if of_bias else None
        for where in task.chunks:
            logp_CV, columns = task.run(layer, hidden_NH, where) if kept is None else kept
            kept = None
            logits_CV = gradient_of_logits(logp_CV, columns, [x if x is None else x[where] for x in upstream], task)
            del logp_CV, columns
            if logits_CV is None:
                continue
            if gradient_V is not None:
                gradient_V += logits_CV.sum(0)
            logits_CV = logits_CV.to(layer.factor_VH.dtype)
            if gradient_NH is not None:
                gradient_NH[where] = multiply(logits_CV, layer.factor_VH)
            if of_weight:
                gradient_VH = add_multiplied(gradient_VH, logits_CV.t(), factor(hidden_NH[where], task.dtype))
            del logits_CV
        if gradient_VH is not None:
            gradient_VH = gradient_VH.to(weight_VH.dtype)
        return gradient_NH, gradient_VH, gradient_V, None


def gradient_of_logits(
    logp_CV: Tensor, columns: Sequence[Tensor], upstream: Sequence[Tensor | None], task: Task
) -> Tensor | None:
    """Gradient of a chunk's logits from those of what was computed of it, into the memory of ``logp_CV``; None: it has none.

    With p = exp(logp) and g the gradient of logp: (g - p * sum(g)) / temperature.
    """
    pairs = [(x, g) for x, g in zip(columns, upstream, strict=True) if g is not None and x.requires_grad]
    if not pairs:
        return None
    (gradient_CV,) = torch.autograd.grad([x for x, _ in pairs], logp_CV, [g for _, g in pairs])
    p_CV = logp_CV.detach().exp_()
    torch.addcmul(gradient_CV, p_CV, gradient_CV.sum(-1, keepdim=True), value=-1, out=p_CV)
    return p_CV if task.temperature == 1.0 else p_CV.div_(task.temperature)


def refuse_other_leaves(columns: Sequence[Tensor], logp_CV: Tensor) -> None:
    """Check that the results have a gradient of the log-probabilities alone: that of anything else would be lost."""
    nodes, seen = [x.grad_fn for x in columns], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        assert leaf is None or leaf is logp_CV, (
            f"a computation over log-probabilities reads another tensor with a gradient, of shape {tuple(leaf.shape)}"
        )
        nodes += [following for following, _ in node.next_functions]
