"""Weights read slice by slice: a sharded run's ranks build the model on the meta device and read their own rows of its files.

So a node's memory holds the files once, in the kernel's cache, and no process holds the whole model. This serves models whose
files hold the model's own tensors under the model's own names. transformers renames, merges or converts the others while it
loads them; these are loaded whole on each rank, as in a run of one process.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlrt.distributed import sharding
from rlrt.model.files import CONFIG, INDEX, WHOLE
from rlrt.model.lora import base_name

FLOATS = {"F32", "BF16", "F16"}
"""Types of numbers in safetensors files that become float32 by conversion alone."""


class WholeError(Exception):
    """A model that must be loaded whole, with the reason."""


def outline(source: str, revision: str | None, attention: str) -> tuple[Any, dict[str, Path]]:
    """Return a model on the meta device, with real buffers, and the file of each of its weights by name.

    Args:
        source, revision, attention: as in ``rlrt.model.load.load``, after its checks of the files.

    Raises:
        WholeError: for a model whose files do not hold exactly the model's own tensors.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    commit = revision or "main"
    config = AutoConfig.from_pretrained(source, revision=commit, trust_remote_code=False)
    for key in ("quantization_config", "transformers_weights"):
        if getattr(config, key, None) is not None:
            raise WholeError(f"its {CONFIG} has {key}")
    files = weight_files(source, revision)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    check_same(model, files)
    make_buffers(model)
    if model.can_generate():
        with contextlib.suppress(OSError):  # the model has no such file: the one made from its config stays
            model.generation_config = GenerationConfig.from_pretrained(source, revision=commit)
    model.config.name_or_path = source
    return model.eval(), files


def weight_files(source: str, revision: str | None) -> dict[str, Path]:
    """Return the file of each tensor of a model, from its folder or the hub's cache; missing files are downloaded.

    Raises:
        WholeError: if there is neither ``model.safetensors`` nor its index.
    """
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    def find(name: str) -> Path | None:
        found = cached_file(source, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    single = find(WHOLE)
    if single is not None:
        with safe_open(single, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), single)
    index = find(INDEX)
    if index is None:
        raise WholeError(f"it has neither {WHOLE} nor {INDEX}")
    names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shards = {name: find(name) for name in sorted(set(names.values()))}
    files = {}
    for tensor, name in names.items():
        shard = shards[name]
        if shard is None:
            raise WholeError(f"{name} is missing")
        files[tensor] = shard
    return files


def check_same(model: Any, files: Mapping[str, Path]) -> None:
    """Refuse files whose tensors are not exactly the model's weights: by name, shape, and a type that is only widened.

    Raises:
        WholeError: naming the first difference.
    """
    from safetensors import safe_open

    weights = dict(model.named_parameters())  # tied weights once
    if persistent := sorted(
        {*model.state_dict()} - {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ):
        raise WholeError(f"it stores buffers ({persistent[0]})")
    if different := sorted(weights.keys() ^ files.keys()):
        raise WholeError(f"the files and the model differ in {len(different)} names of tensors ({different[0]})")
    for file in set(files.values()):
        with safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                if files.get(name) != file:
                    continue
                stored = opened.get_slice(name)
                if tuple(stored.get_shape()) != tuple(weights[name].shape) or stored.get_dtype() not in FLOATS:
                    raise WholeError(f"{name} is stored as {stored.get_dtype()} of shape {stored.get_shape()}")


@torch.no_grad()
def make_buffers(model: Any) -> None:
    """Compute the buffers of a model on the meta device (rotary frequencies) on the CPU, by the model's own initialisation.

    Raises:
        WholeError: for a buffer that this does not fill.
    """
    for prefix, module in model.named_modules():
        held = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        if not held:
            continue
        for name, buffer in held.items():
            if not buffer.is_floating_point():
                raise WholeError(f"its buffer {prefix}.{name} is not of floats")
            module._buffers[name] = torch.full_like(buffer, torch.nan, device="cpu")
        model._init_weights(module)
        for name in held:
            if bool(module._buffers[name].isnan().any()):
                raise WholeError(f"its buffer {prefix}.{name} cannot be computed alone")


def read(model: Any, device: torch.device, files: Mapping[str, Path], given: Mapping[str, Tensor]) -> None:
    """Fill a model's weights on the meta device: this rank's rows of each, in float32 on ``device``.

    Args:
        files: the file of each weight, under the base model's names.
        given: whole tensors that are in no file (new adapters), by their names in the model.
    """
    from safetensors import safe_open

    opened = {file: safe_open(file, framework="pt") for file in set(files.values())}

    def value(name: str, empty: Any) -> Any:
        if name in given:
            return empty.copy_(sharding.like(empty, given[name]))
        stored_name = base_name(name)
        stored = opened[files[stored_name]].get_slice(stored_name)
        if not sharding.is_share(empty):
            return empty.copy_(stored[:])
        first, last = sharding.rows_of(empty)
        if last > first:
            empty.to_local().copy_(stored[first:last])
        return empty

    sharding.fill(model, device, value)
