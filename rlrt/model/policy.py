"""The policy: a causal language model, its tokenizer and its optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlrt.distributed import sharding
from rlrt.model import hub
from rlrt.model.lora import named_weights
from rlrt.model.offload import Moments
from rlrt.model.plain_text import text_of
from rlrt.records.shards import Piece, write_pieces

BROKEN = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character."""
LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8, and so the most tokens of one."""


class Policy:
    """The student: trained weights and their optimiser (None if the weights are only evaluated).

    Attributes:
        version: optimiser steps done by this process; an engine with its own copy compares it with the version last synced.

    Args:
        rests: whether the optimiser's moments lie in the host's memory between two updates.
    """

    def __init__(self, model: Any, tokenizer: Any, optimiser: Any, temperature: float, rests: bool = False) -> None:
        self.model, self.tokenizer, self.optimiser, self.temperature = model, tokenizer, optimiser, temperature
        self.version = 0
        self._moments = Moments(optimiser) if rests else None

    def rest(self) -> None:
        """Send the moments to the host until the next optimiser step, where that is asked for."""
        if self._moments is not None:
            self._moments.rest()

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.model.parameters()).device

    @property
    def stop_ids(self) -> list[int]:
        """Return the tokens that end a response: the generation config's, or else the tokenizer's end of sequence."""
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return [ids] if isinstance(ids, int) else list(ids or [])

    @property
    def special_ids(self) -> list[int]:
        """Return special and template tokens: those that end a response, and all added to the vocabulary (``<think>``)."""
        named = [i for i in self.tokenizer.all_special_ids if i is not None]  # None: named, and not in the vocabulary
        return sorted({*self.stop_ids, *named, *self.tokenizer.added_tokens_decoder})

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a response, without special tokens but with the tags of its thought."""
        return text_of(self.tokenizer, ids)

    def spell(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token by itself, special tokens included.

        A character of several tokens (bytes of its UTF-8) stands whole at the first of them; the others are empty.
        """
        pieces: list[str] = []
        while len(pieces) < len(ids):
            at = len(pieces)
            alone = str(self.tokenizer.decode([ids[at]]))
            count = 1
            if alone.endswith(BROKEN):
                ends = range(at + 2, min(at + LONGEST_CHARACTER, len(ids)) + 1)
                joint = ((end - at, str(self.tokenizer.decode(ids[at:end]))) for end in ends)
                count, alone = next(((n, text) for n, text in joint if BROKEN not in text), (1, alone))
            pieces += [alone, *[""] * (count - 1)]
        return pieces

    def step(self, lr: float, max_grad_norm: float) -> float:
        """Do one optimiser step at ``lr``, clear the gradient, and return the gradient's norm before clipping."""
        norm = sharding.whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm))
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        if torch.isfinite(norm):
            if self._moments is not None:
                self._moments.wake()
            self.optimiser.step()  # a gradient that is not finite is skipped; its norm is recorded and causes a warning
            self.version += 1
            sharding.drop_gathered(self.model)
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, folder: Path) -> None:
        """Write weights (adapters merged), config and tokenizer in the hub's format: ``transformers`` loads the folder."""
        hub.write_texts(self.model, self.tokenizer, folder, torch.float32)
        weights = hub.as_stored(self.model, dict(named_weights(self.model)))
        write_pieces(folder / hub.weights_file(0, 1), [Piece(*named) for named in weights.items()])


def adamw(model: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW over all trained weights: the adapters alone, if the model has any.

    On CPUs and CUDA the fused kernel: the same arithmetic to rounding, in one pass over the weights and without a copy of them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = trained[0].device.type in ("cpu", "cuda") or None
    return torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
