"""Decode any causal model of transformers with its own cache: the reference that ``rlrt.model.dense`` is tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlrt.model.head import output_layer


class CachedDecoder:
    """Rows that grow by one token at a time (``rlrt.engines.hf.Decoder``)."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def start(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
        """Run each prompt once, padded on the left; return logits of the first token of ``counts[i]`` rows each: (rows, V)."""
        from transformers import DynamicCache

        device = next(self._model.parameters()).device
        width = max(len(p) for p in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        real = torch.zeros(len(prompts), width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(list(prompt))
            real[i, width - len(prompt) :] = 1
        ids, real = ids.to(device), real.to(device)
        self._cache: Any = DynamicCache(config=self._model.config)
        mask = None if bool(real.all()) else real
        hidden = self._model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(real.cumsum(-1) - 1).clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self._head = output_layer(self._model)
        logits = self._head.logits(hidden)
        repeat = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(counts)).to(device)
        self._select(repeat)
        self._mask = None if mask is None else mask[repeat]
        self._position = real.sum(-1)[repeat]
        return logits[repeat]

    def step(self, token_B: Tensor) -> Tensor:
        """Append a token to each row and return the logits of the next token: (rows, V)."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)
        hidden = self._model.base_model(
            input_ids=token_B[:, None],
            attention_mask=self._mask,
            position_ids=self._position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self._position = self._position + 1
        return self._head.logits(hidden)

    def keep(self, index: Tensor) -> None:
        """Keep only the rows in ``index``."""
        self._position = self._position[index]
        self._mask = None if self._mask is None else self._mask[index]
        self._select(index)

    def _select(self, index: Any) -> None:
        """Select rows of the cache; unlike batch_select_indices, this call knows linear attention."""
        self._cache.reorder_cache(index)
