"""Checks of a model's files before any of them is loaded: refuse in one sentence what is no model or points outside its
folder.

transformers follows file names inside a model's own files: an index names shards, ``config.json`` may name its weights, an
adapter its base model. A name that points outside the folder may point to a pickle, and no digest of the folder covers that
file. So every such name must be that of a file in the same folder, and weights must be safetensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, amount, first_line

CONFIG, INDEX, ADAPTER = "config.json", "model.safetensors.index.json", "adapter_config.json"
TOKENIZER, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
WHOLE = "model.safetensors"
"""Name of the weights' file where there is one alone."""
WEIGHTS, INDICES = ".safetensors", ".safetensors.index.json"
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Names of shards that transformers prefers to all other weights, and whose tensors it ignores where the config has no use
for them."""
NAMING = {"transformers_weights": (WEIGHTS, INDICES), "configuration_files": (".json",)}
"""Keys of ``config.json`` that name other files, and the suffixes that such a name must have."""
PAPERS = (".json", ".jinja", ".txt", ".model")
"""Endings of a model's files beside its weights."""
LARGEST_PAPER = 500_000_000
"""Bytes of the largest of these; the largest tokenizers have a tenth."""
KERNELS = ("attn_implementation", "experts_implementation")
"""Suffixes of keys of ``config.json`` whose values may name code on the hub."""
ELSEWHERE = "get it by python -m rlrt.fetch where there is a network, or give its folder as model.path=/path/to/folder"
"""What to do about a model that is not on this machine."""
Find = Callable[[str], Path | None]
"""A function from a file's name to the model's file of that name, or None if the model has no such file."""


def check_folder(folder: Path) -> None:
    """Refuse a model folder with an unreadable config, without safetensors weights, or with names that point outside it.

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
    check_papers(folder)
    check_names(folder / CONFIG, lambda name: folder / name if os.path.exists(folder / name) else None)
    for index in sorted(folder.glob(f"*{INDICES}")):
        check_index(index, folder)
    for name in filter(DISTRIBUTED.match, weights):
        raise UserError(
            f"model.path: expected model.safetensors, or shards that {INDEX} names, in {folder}, found a part of a distributed "
            f"checkpoint ({name}); save the model with save_pretrained and give that folder."
        )


def check_papers(folder: Path) -> None:
    """Refuse a model whose configs, tokenizer or template are no files, or larger than any tokenizer: they are read as a whole.

    Raises:
        UserError: naming the file.
    """
    for file in sorted(p for p in folder.iterdir() if p.suffix in PAPERS and os.path.lexists(p)):
        size = file.stat().st_size if file.is_file() else 0
        if not file.is_file() or size > LARGEST_PAPER:
            found = f"one of {amount(size)}" if size else "none"
            raise UserError(
                f"model.path: expected a file of at most {amount(LARGEST_PAPER)} as {file}, found {found}; save or download "
                "the model again."
            )


def check_hub(hub_id: str, revision: str | None) -> str:
    """Refuse a model on the hub that is not available, or whose small files point outside it; weights are not downloaded.

    Returns:
        the commit whose files were checked: weights must be loaded from this commit alone.

    Raises:
        UserError: naming the file, or saying how to give a folder instead.
    """
    check_reachable(hub_id, revision)
    config = hub_file(hub_id, CONFIG, revision)
    if config is None:
        raise not_on_hub_error(hub_id, f"it has no {CONFIG}, or it is not in the local cache", revision)
    commit = config.parent.name

    def find(name: str) -> Path | None:
        return hub_file(hub_id, name, commit)

    for name in [INDEX, *check_names(config, find)]:
        index = find(name)
        if index is not None:
            check_index(index, None)
    return commit


def check_reachable(hub_id: str, revision: str | None) -> None:
    """Refuse at once, not after many retries, a hub id whose files are neither in the local cache nor downloadable.

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
            f"model.path: the hub at {constants.ENDPOINT} cannot be reached for {hub_id} ({first_line(error)})"
            f"{other_revisions(hub_id, revision)}; {ELSEWHERE}."
        ) from None


def other_revisions(hub_id: str, revision: str | None) -> str:
    """Return the words for a local cache that holds a model at other revisions than the one asked for; else nothing."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    held = sorted(p.name for p in snapshots.glob("*") if (p / CONFIG).exists() and p.name != revision)
    if not held:
        return ""
    return f"; the local cache holds revision {', '.join(held)}, not {revision} (model.revision)"


def hub_file(hub_id: str, name: str, revision: str | None) -> Path | None:
    """Return the path of a model's small file from the local cache, downloaded if necessary; None if the model has no such
    file.

    Raises:
        UserError: where the hub refuses the download (no such model or revision, no access).
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
        raise not_on_hub_error(hub_id, first_line(error), revision) from error


def not_on_hub_error(hub_id: str, why: str, revision: str | None = None) -> UserError:
    """Return the error for a model that cannot be downloaded from the hub."""
    others = other_revisions(hub_id, revision)
    return UserError(f"model.path: {hub_id} could not be downloaded from the hub ({why}){others}; {ELSEWHERE}.")


def check_names(config: Path, find: Find) -> list[str]:
    """Refuse a config or tokenizer that names code or files outside the folder, and a model that is an adapter.

    Returns:
        the indices of shards that the model's configs name.

    Raises:
        UserError: naming the file and the name in it.
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
                raise outside_name_error(tokenizer, key, name, "*.json")
    if special is not None:
        for key, name in entries(read_object(special)):
            if key.endswith("_file"):
                raise outside_name_error(special, key, name, "nothing")
    names = check_config(config, read_object(config))
    for name in [n for n in names if not n.endswith((WEIGHTS, INDICES))]:
        other = find(name)
        if other is not None:
            names += check_config(other, read_object(other))
    return [name for name in names if name.endswith(INDICES)]


def check_config(file: Path, values: Mapping[str, Any]) -> list[str]:
    """Refuse a ``config.json`` that names code, or weights outside the folder or in another format.

    Returns:
        the weights, indices and other configs in the same folder that the config names.

    Raises:
        UserError: naming the key and its value.
    """
    names = []
    for key, value in entries(values):
        if key.endswith(KERNELS) and isinstance(value, str) and "/" in value:
            raise UserError(
                f"model.path: {file} names {brief(value)} as {key}, which is code from elsewhere; no code that comes with a "
                "model is run, so remove the key."
            )
        suffixes = NAMING.get(key, ())
        if suffixes and value is not None:
            if not is_plain(value, *suffixes):
                raise outside_name_error(file, key, value, f"*{suffixes[0]}")
            names.append(value)
    return names


def check_index(index: Path, folder: Path | None) -> None:
    """Refuse an index of shards that names anything but safetensors files in its own folder.

    Args:
        index: a ``*.safetensors.index.json``.
        folder: the folder that must hold the shards; None if the shards are still to be downloaded.

    Raises:
        UserError: naming the index and the entry.
    """
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(
            f"model.path: expected an object of tensors and their files as weight_map in {index}, got {brief(shards)}; "
            "save the model again."
        )
    for tensor, name in shards.items():
        if not is_plain(name, WEIGHTS):
            raise outside_name_error(index, brief(tensor), name, "*.safetensors")
        if folder is not None and not os.path.isfile(folder / name):
            raise UserError(
                f"model.path: {index} names {brief(name)} for {brief(tensor)}, which is not in its folder; download or copy "
                "the missing file, or remove an index that does not belong to these weights."
            )


def is_plain(name: Any, *suffixes: str) -> bool:
    """True if a value is the name of a file in the same folder, with one of the given suffixes."""
    return isinstance(name, str) and name.endswith(suffixes) and not re.search(r"[/\\\0]", name)


def outside_name_error(file: Path, key: str, name: Any, expected: str) -> UserError:
    """Return the error for a name that is not one of the model's own files."""
    return UserError(
        f"model.path: {file} names {brief(name)} for {key}, expected {expected} of its own folder; put the file there and "
        "name it so, or give another model."
    )


def entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield every scalar at any depth with its key; scalars below a key in ``KERNELS`` are yielded under that key."""
    stack = [("", values)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(key if key.endswith(KERNELS) else name, v) for name, v in value.items()]
        elif isinstance(value, list):
            stack += [(key, v) for v in value]
        else:
            yield key, value


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in one of a model's files.

    Raises:
        UserError: if the file holds no JSON object.
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


def brief(value: Any) -> str:
    """Return a value of a foreign file for a message, cut to 80 characters."""
    text = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
