"""A model as the hub's files: which tensors under which names, and the small files beside them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlrt.model.files import WHOLE
from rlrt.model.lora import base_name, base_weights, named_weights


def write_texts(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write configs and tokenizer.

    Args:
        dtype: of the weights in the files.
    """
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def weights_file(rank: int, size: int) -> str:
    """Return the name of the file with a rank's share of the weights."""
    return WHOLE if size == 1 else f"model-{rank + 1:05}-of-{size:05}.safetensors"


def writers(model: Any, size: int) -> int:
    """Return how many of ``size`` ranks write the weights: all, or rank 0 alone where the hub's names are not the model's own,
    because renaming may join tensors."""
    if size == 1:
        return 1
    own = {base_name(n): torch.empty(t.shape, device="meta") for n, t in base_weights(model)}
    return size if as_stored(model, own).keys() == own.keys() else 1


def shared_out(model: Any, ranks: int) -> Iterator[tuple[int, str, Tensor]]:
    """Yield (rank, name, tensor) for every full weight, adapters merged: about as many bytes for each of ``ranks`` ranks.

    If the weights are sharded, all ranks must iterate together.
    """
    total, done = sum(p.numel() for p in model.parameters()), 0
    for name, tensor in named_weights(model):
        yield min(ranks - 1, ranks * (2 * done + tensor.numel()) // (2 * total)), name, tensor
        done += tensor.numel()


def as_stored(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names and in the shapes of the hub's files."""
    from transformers.core_model_loading import revert_weight_conversion

    left_out = model._keys_to_ignore_on_save or ()
    kept = {k: v for k, v in weights.items() if k not in left_out}
    converted: dict[str, Tensor] = revert_weight_conversion(model, kept)
    return converted


def index(files: Mapping[str, str], total: int) -> bytes:
    """Return the index of several weight files.

    Args:
        files: the file of each tensor.
        total: bytes of all tensors.
    """
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(files)}, indent=1).encode()
