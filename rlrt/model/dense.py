"""Decode a plain dense model token by token, from its own weights: the arithmetic of ``rlrt.engines.cached`` in fewer calls.

A plain dense model has layers of norm, attention, norm and gated feed-forward network (Llama, Qwen2, Qwen3, Mistral without
windows, SmolLM2), with or without biases and norms of queries and keys; ``rlrt.model.structure`` says which models are.
Weights are concatenated (queries, keys and values; gate and up) in the precision that the model computes in, for the duration
of one call of ``sample``. Keys and values are stored in tensors with spare capacity, of the unfinished rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlrt.distributed.sharding import whole
from rlrt.model import packed
from rlrt.model.head import product
from rlrt.model.lora import weight_of
from rlrt.model.precision import dtype_of
from rlrt.model.structure import epsilon_of

ROOM = 64
"""Tokens by which a full cache grows; a quarter of its length if that is more."""


@dataclass
class LayerWeights:
    """One layer's weights, and its cache: keys and values of (rows, heads, capacity, head size).

    A matrix stands with its bias; None: it has none. ``qk_norm`` is None in a model that does not normalise queries and keys.
    """

    input_norm: Tensor
    qkv: tuple[Tensor, Tensor | None]
    qk_norm: Tensor | None
    out: tuple[Tensor, Tensor | None]
    post_norm: Tensor
    gate_up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]
    keys: Tensor
    values: Tensor


class DenseDecoder:
    """Rows that grow by one token at a time (``rlrt.engines.hf.Decoder``)."""

    def __init__(self, model: Any) -> None:
        self._model = model
        base = model.base_model
        attention = base.layers[0].self_attn
        self.dtype = dtype_of(model)
        self.size, self.scale = int(attention.head_dim), float(attention.scaling)
        self.queries, self.heads = model.config.num_attention_heads, model.config.num_key_value_heads
        self.epsilon = epsilon_of(base.norm) or 0.0
        self.embedding = model.get_input_embeddings().weight
        self.head = weight_of(model.get_output_embeddings()).to(self.dtype)
        self.head_bias = bias_of(model.get_output_embeddings())
        self.norm = base.norm.weight
        self.layers: list[LayerWeights] = []

    def start(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
        """Run each prompt once; return logits of the first token of ``counts[i]`` rows of prompt i: (rows, V)."""
        device = self.embedding.device
        packing = packed.pack(prompts, [], [], device, packed.flash_dtype(self._model))
        packing.key_values = []
        hidden = packed.hidden_states(self._model, packing)
        length, start = packing.length_S.to(device), packing.start_S.to(device)
        owner = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(counts)).to(device)
        self.column = int(length.max())
        self.position = length[owner]
        pad = self.column - length
        step = torch.arange(self.column, device=device)[None]
        token_index = (start[:, None] + (step - pad[:, None]).clamp(min=0))[
            owner
        ]  # padded on the left, so that all rows end in one column
        self.pad = pad[owner]
        self.ragged = bool((pad > 0).any())
        self.layers = [
            self._layer(layer, keys, values, token_index)
            for layer, (keys, values) in zip(self._model.base_model.layers, packing.key_values, strict=True)
        ]
        self._widen()
        return self._logits(hidden[start + length - 1].to(self.dtype))[owner]

    def _layer(self, layer: Any, keys: Tensor, values: Tensor, token_index: Tensor) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp

        def concatenated(*modules: Any) -> tuple[Tensor, Tensor | None]:
            weights, biases = [weight_of(m) for m in modules], [bias_of(m) for m in modules]
            matrix = torch.cat([w.to(self.dtype) for w in weights])
            if all(bias is None for bias in biases):
                return matrix, None
            filled = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
            return matrix, torch.cat([b.to(self.dtype) for b in filled])

        qk_norm = None
        if hasattr(attention, "q_norm"):
            query_norm = attention.q_norm.weight * self.scale  # attention's scale, folded into the norm's weight
            norms = [query_norm.expand(self.queries, -1), attention.k_norm.weight.expand(self.heads, -1)]
            qk_norm = torch.cat(norms)
        rows, width = token_index.shape
        cached = [
            x.to(self.dtype)
            .index_select(1, token_index.flatten())
            .view(self.heads, rows, width, self.size)
            .transpose(0, 1)
            for x in (keys, values)
        ]
        return LayerWeights(
            layer.input_layernorm.weight,
            concatenated(attention.q_proj, attention.k_proj, attention.v_proj),
            qk_norm,
            concatenated(attention.o_proj),
            layer.post_attention_layernorm.weight,
            concatenated(mlp.gate_proj, mlp.up_proj),
            concatenated(mlp.down_proj),
            *cached,
        )

    def _widen(self) -> None:
        """Enlarge the caches, the mask and the rotary tables for more tokens."""
        added = max(ROOM, self.column // 4)
        for layer in self.layers:
            layer.keys, layer.values = (
                torch.cat([x[:, :, : self.column], x.new_empty(*x.shape[:2], added, x.shape[3])], 2)
                for x in (layer.keys, layer.values)
            )
        self.capacity = self.column + added
        step = torch.arange(self.capacity, device=self.pad.device)
        hidden = step[None] < self.pad[:, None]
        self.mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -torch.inf)
        self.cos, self.sin = (x[0] for x in self._model.base_model.rotary_emb(self.embedding, step[None]))
        self.sin[:, : self.size // 2].neg_()  # x cos + (-x2, x1) sin = x cos + (x2, x1) (-sin, sin)

    def keep(self, index: Tensor) -> None:
        """Keep only the rows in ``index``."""
        self.position, self.pad, self.mask = self.position[index], self.pad[index], self.mask[index]
        for layer in self.layers:
            layer.keys, layer.values = layer.keys.index_select(0, index), layer.values.index_select(0, index)

    def step(self, token_B: Tensor) -> Tensor:
        """Append a token to each row and return the logits of the next token: (rows, V)."""
        if self.column == self.capacity:
            self._widen()
        rows, end = len(token_B), self.column + 1
        cos, sin = (x.index_select(0, self.position)[:, None] for x in (self.cos, self.sin))
        mask = self.mask[:, None, None, :end] if self.ragged else None
        x_BH = F.embedding(token_B, self.embedding)
        for layer in self.layers:
            qkv = F.linear(rms_norm(x_BH, layer.input_norm, self.epsilon).to(self.dtype), *layer.qkv)
            qkv = qkv.view(rows, self.queries + 2 * self.heads, self.size)
            qk = self._normed(qkv[:, : self.queries + self.heads], layer.qk_norm)
            qk = torch.addcmul(qk * cos, qk.roll(self.size // 2, -1), sin).to(self.dtype)
            layer.keys[:, :, self.column] = qk[:, self.queries :]
            layer.values[:, :, self.column] = qkv[:, self.queries + self.heads :]
            query = qk[:, : self.queries].reshape(
                rows, self.heads, -1, self.size
            )  # grouped by the key head that the queries share
            attended = attend(query, layer.keys[:, :, :end], layer.values[:, :, :end], mask)
            x_BH = x_BH + F.linear(attended.reshape(rows, -1), *layer.out)
            gate, up = F.linear(rms_norm(x_BH, layer.post_norm, self.epsilon).to(self.dtype), *layer.gate_up).chunk(
                2, -1
            )
            x_BH = x_BH + F.linear(F.silu(gate) * up, *layer.down)
        self.column, self.position = end, self.position + 1
        return self._logits(rms_norm(x_BH, self.norm, self.epsilon).to(self.dtype))

    def _normed(self, qk: Tensor, weight: Tensor | None) -> Tensor:
        """Return queries times attention's scale, and keys, in float32; both normalised if there is a weight for it."""
        if weight is not None:
            return rms_norm(qk, None, self.epsilon) * weight
        queries, keys = qk.float().split([self.queries, self.heads], 1)
        return torch.cat([queries * self.scale, keys], 1)

    def _logits(self, hidden_BH: Tensor) -> Tensor:
        logits_BV = product(hidden_BH, self.head)
        return logits_BV if self.head_bias is None else logits_BV + self.head_bias.float()


@torch.no_grad()
def bias_of(linear: Any) -> Tensor | None:
    """Return the bias of a linear layer, with adapters or without; None if it has none."""
    bias = getattr(linear, "base_layer", linear).bias
    return None if bias is None else whole(bias)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """Return x / root mean square of its last axis, times the weight; in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight, epsilon)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention of (rows, heads, queries per head, size) to all keys; faster than torch's kernel for so few queries."""
    score = torch.matmul(query, keys.transpose(-1, -2)).float()
    if mask is not None:
        score = score + mask
    return torch.matmul(score.softmax(-1).to(values.dtype), values)
