"""Decode a Qwen3 one token at a time, from its own weights: the arithmetic of ``rlrt.engines.cached`` in fewer calls.

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

from rlrt.model import packed
from rlrt.model.head import product
from rlrt.model.lora import weight_of
from rlrt.model.precision import dtype_of

ROOM = 64
"""Tokens by which a full cache grows; a quarter of its length if that is more."""


def fits(model: Any) -> bool:
    """True if the model is a Qwen3 that this file can run: causal attention over all tokens, no biases, plain rotary
    positions."""
    config = model.config
    return (
        packed.enabled(model)
        and config.hidden_act == "silu"
        and not config.attention_bias
        and config.rope_parameters["rope_type"] == "default"
    )


@dataclass
class LayerWeights:
    """One layer's weights, and its cache: keys and values of (rows, heads, capacity, head size)."""

    input_norm: Tensor
    qkv: Tensor
    qk_norm: Tensor
    out: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor
    keys: Tensor
    values: Tensor


class Qwen3Decoder:
    """Rows that grow by one token at a time (``rlrt.engines.hf.Decoder``)."""

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config
        self.dtype = dtype_of(model)
        self.queries, self.heads, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.epsilon = config.rms_norm_eps
        self.embedding = model.get_input_embeddings().weight
        self.head = weight_of(model.get_output_embeddings()).to(self.dtype)
        self.norm = model.base_model.norm.weight
        self.layers: list[LayerWeights] = []

    def start(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
        """Run each prompt once; return logits of the first token of ``counts[i]`` rows of prompt i: (rows, V)."""
        device = self.embedding.device
        packing = packed.pack(prompts, [], [], device)
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
        return product(hidden[start + length - 1].to(self.dtype), self.head)[owner]

    def _layer(self, layer: Any, keys: Tensor, values: Tensor, token_index: Tensor) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp

        def concatenated(*modules: Any) -> Tensor:
            return torch.cat([weight_of(m).to(self.dtype) for m in modules])

        query_norm = attention.q_norm.weight * self.size**-0.5  # attention's scale, folded into the norm's weight
        norms = [query_norm.expand(self.queries, -1), attention.k_norm.weight.expand(self.heads, -1)]
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
            torch.cat(norms),
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
            qkv = F.linear(rms_norm(x_BH, layer.input_norm, self.epsilon).to(self.dtype), layer.qkv)
            qkv = qkv.view(rows, self.queries + 2 * self.heads, self.size)
            qk = rms_norm(qkv[:, : self.queries + self.heads], None, self.epsilon) * layer.qk_norm
            qk = torch.addcmul(qk * cos, qk.roll(self.size // 2, -1), sin).to(self.dtype)
            layer.keys[:, :, self.column] = qk[:, self.queries :]
            layer.values[:, :, self.column] = qkv[:, self.queries + self.heads :]
            query = qk[:, : self.queries].reshape(
                rows, self.heads, -1, self.size
            )  # grouped by the key head that the queries share
            attended = attend(query, layer.keys[:, :, :end], layer.values[:, :, :end], mask)
            x_BH = x_BH + F.linear(attended.reshape(rows, -1), layer.out)
            gate, up = F.linear(rms_norm(x_BH, layer.post_norm, self.epsilon).to(self.dtype), layer.gate_up).chunk(
                2, -1
            )
            x_BH = x_BH + F.linear(F.silu(gate) * up, layer.down)
        self.column, self.position = end, self.position + 1
        return product(rms_norm(x_BH, self.norm, self.epsilon).to(self.dtype), self.head)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """Return x / root mean square of its last axis, times the weight; in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight, epsilon)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention of (rows, heads, queries per head, size) to all keys; faster than torch's kernel for so few queries."""
    score = torch.matmul(query, keys.transpose(-1, -2)).float()
    if mask is not None:
        score = score + mask
    return torch.matmul(score.softmax(-1).to(values.dtype), values)
