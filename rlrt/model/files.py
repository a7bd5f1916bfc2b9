"""A model's files before any of them is loaded: what is no model, or leads out of its folder, is refused in one sentence.

transformers follows names that it finds in a model's own files: an index names shards, ``config.json`` may name its weights, an
adapter its base model. A name that leads to another place may lead to a pickle, and no digest of the folder covers it. So every
such name must be that of a file beside it, and weights are safetensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, first_line

CONFIG, INDEX, ADAPTER = "config.json", "model.safetensors.index.json", "adapter_config.json"
TOKENIZER, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
WEIGHTS, INDICES = ".safetensors", ".safetensors.index.json"
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Shards that transformers takes before all others, and of which it ignores the tensors that the config has no use for."""
NAMING = {"transformers_weights": (WEIGHTS, INDICES), "configuration_files": (".json",)}
"""Keys of ``config.json`` that name other files, and how such a name must end."""
KERNELS = ("attn_implementation", "experts_implementation")
"""Ends of keys of ``config.json`` that may name code on the hub."""
Find = Callable[[str], Path | None]
"""The file of a model that has a name, None where there is none."""


def check_folder(folder: Path) -> None:
    """Refuse a model folder whose config cannot be read, that holds no safetensors weights, or that leads elsewhere.

    Raises:
        UserError: naming the file that is missing or broken.
    """
    if (folder / "manifest.json").is_file() and not (folder / CONFIG).exists():
        raise UserError(
            f"model.path: the run in {folder} has no checkpoint yet; let it finish, or give another model.path."
        )
    if not (folder / CONFIG).exists():
        raise UserError(f"model.path: expected a config.json in {folder}, found none.")
    weights = sorted(file.name for file in folder.glob(f"*{WEIGHTS}"))
    if not weights:
        raise UserError(
            f"model.path: expected weights as *.safetensors in {folder}, found none (other formats are not loaded)."
        )
    check_names(folder / CONFIG, lambda name: folder / name if os.path.exists(folder / name) else None)
    for index in sorted(folder.glob(f"*{INDICES}")):
        check_index(index, folder)
    for name in filter(DISTRIBUTED.match, weights):
        raise UserError(
            f"model.path: expected model.safetensors, or shards that {INDEX} names, in {folder}, found a part of a distributed "
            f"checkpoint ({name}); save the model with save_pretrained and give that folder."
        )


def check_hub(hub_id: str, revision: str | None) -> str:
    """Refuse a model on the hub that cannot be had, or whose small files lead elsewhere; its weights are not asked for.

    Returns:
        the commit whose files were looked at: weights must be loaded from no other.

    Raises:
        UserError: naming the file, or saying how to give a folder instead.
    """
    check_reachable(hub_id, revision)
    config = hub_file(hub_id, CONFIG, revision)
    if config is None:
        raise no_hub(hub_id, f"it has no {CONFIG}, or it is not in the local cache")
    commit = config.parent.name

    def find(name: str) -> Path | None:
        return hub_file(hub_id, name, commit)

    for name in [INDEX, *check_names(config, find)]:
        index = find(name)
        if index is not None:
            check_index(index, None)
    return commit


def check_reachable(hub_id: str, revision: str | None) -> None:
    """Refuse a hub id whose files are neither in the local cache nor to be had, at once and not after many retries.

    Raises:
        UserError: saying how to give a folder instead.
    """
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(hub_id, CONFIG, revision=revision), str):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the http library's own types
        raise UserError(
            f"model.path: the hub at {constants.ENDPOINT} cannot be reached for {hub_id} ({first_line(error)}); download "
            "it elsewhere and give its folder as model.path=/path/to/folder."
        ) from None


def hub_file(hub_id: str, name: str, revision: str | None) -> Path | None:
    """A small file of a model on the hub, from the local cache or downloaded into it; None where there is none to be had.

    Raises:
        UserError: where the hub refuses (no such model or revision, no access).
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    cached = try_to_load_from_cache(hub_id, name, revision=revision)
    if cached is not None and re.fullmatch("[0-9a-f]{40}", revision or ""):
        return Path(cached) if isinstance(cached, str) else None  # a commit never changes
    try:
        return Path(hf_hub_download(hub_id, name, revision=revision))
    except EntryNotFoundError:  # also: offline, and not in the cache
        return None
    except Exception as error:  # the hub's many types for one cause
        raise no_hub(hub_id, first_line(error)) from error


def no_hub(hub_id: str, why: str) -> UserError:
    """What a model that the hub does not give is refused with."""
    return UserError(
        f"model.path: {hub_id} could not be had from the hub ({why}); download it elsewhere and give its folder as "
        "model.path=/path/to/folder."
    )


def check_names(config: Path, find: Find) -> list[str]:
    """Refuse a model whose config or tokenizer names files in other places, or code, and one that is an adapter.

    Returns:
        the indices of shards that its configs name.

    Raises:
        UserError: naming the file and what it names.
    """
    adapter, tokenizer, special = find(ADAPTER), find(TOKENIZER), find(SPECIAL)
    if adapter is not None:
        raise UserError(
            f"model.path: expected a whole model, found an adapter's {adapter}; merge it into its base model (peft's "
            "merge_and_unload, then save_pretrained) and give that folder."
        )
    if tokenizer is not None:
        for key, name in entries(read_object(tokenizer)):
            if key == "fast_tokenizer_files" and not is_plain(name, ".json"):
                raise leads_out(tokenizer, key, name, "*.json")
    if special is not None:
        for key, name in entries(read_object(special)):
            if key.endswith("_file"):
                raise leads_out(special, key, name, "nothing")
    names = check_config(config, read_object(config))
    for name in [n for n in names if not n.endswith((WEIGHTS, INDICES))]:
        other = find(name)
        if other is not None:
            names += check_config(other, read_object(other))
    return [name for name in names if name.endswith(INDICES)]


def check_config(file: Path, values: Mapping[str, Any]) -> list[str]:
    """Refuse a ``config.json`` that names weights in other places or of other formats, or code.

    Returns:
        the weights, indices and other configs of its folder that it names.

    Raises:
        UserError: naming the key and its value.
    """
    names = []
    for key, value in entries(values):
        if key.endswith(KERNELS) and isinstance(value, str) and "/" in value:
            raise UserError(
                f"model.path: {file} names {shown(value)} as {key}, which is code of another place; no code that comes with a "
                "model is run, so remove the key."
            )
        ends = NAMING.get(key, ())
        if ends and value is not None:
            if not is_plain(value, *ends):
                raise leads_out(file, key, value, f"*{ends[0]}")
            names.append(value)
    return names


def check_index(index: Path, folder: Path | None) -> None:
    """Refuse an index of shards that names anything but safetensors files beside it.

    Args:
        index: a ``*.safetensors.index.json``.
        folder: where its shards must be; None where they are still to be downloaded.

    Raises:
        UserError: naming the index and the entry.
    """
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(
            f"model.path: expected an object of tensors and their files as weight_map in {index}, got {shown(shards)}; "
            "save the model again."
        )
    for tensor, name in shards.items():
        if not is_plain(name, WEIGHTS):
            raise leads_out(index, shown(tensor), name, "*.safetensors")
        if folder is not None and not os.path.isfile(folder / name):
            raise UserError(
                f"model.path: {index} names {shown(name)} for {shown(tensor)}, which is not in its folder; download or copy "
                "the missing file, or remove an index that does not belong to these weights."
            )


def is_plain(name: Any, *ends: str) -> bool:
    """Whether a value is the name of a file in the same folder, with one of these ends."""
    return isinstance(name, str) and name.endswith(ends) and not re.search(r"[/\\\0]", name)


def leads_out(file: Path, key: str, name: Any, expected: str) -> UserError:
    """What a name that is not one of the model's own files is refused with."""
    return UserError(
        f"model.path: {file} names {shown(name)} for {key}, expected {expected} of its own folder; put the file there and "
        "name it so, or give another model."
    )


def entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Every value that is no object and no list, however deep, with its key (what is below a kernel's key has that key)."""
    left = [("", values)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(key if key.endswith(KERNELS) else name, v) for name, v in value.items()]
        elif isinstance(value, list):
            left += [(key, v) for v in value]
        else:
            yield key, value


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object of a model.

    Raises:
        UserError: where the file holds none.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"model.path: {file} is not readable JSON ({first_line(error)}); save or download the model again."
        ) from None
    if not isinstance(values, dict):
        raise UserError(
            f"model.path: {file} is not readable JSON of a model (expected an object, got {type(values).__name__}); save or "
            "download the model again."
        )
    return values


def shown(value: Any) -> str:
    """A value of a foreign file for a message, cut to 80 letters."""
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
