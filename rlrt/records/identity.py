"""A run's identity: a hash over config, code, library versions, and the content of models and data."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, amount
from rlrt.paths import CHECKSUMS, PACKAGE, STATE, TRAINER, local_folder
from rlrt.records.files import files_below
from rlrt.records.user_code import sources

IGNORED_SECTIONS = ("hydra", "tracking", "resume", "origin", "threads", "trial", "distributed")
IGNORED_TRAIN = ("save_every", "save_minutes", "save_async", "save_dtype", "keep_last", "keep_best", "offload")
IGNORED_MODEL = ("offload_activations",)
IGNORED_ENGINE = ("url", "start", "gpus", "host", "transfer", "transfer_dir", "timeout_s")
"""These sections and keys say where a run and its tensors are stored, not what it computes; the identity ignores them."""
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
"""The versions of these packages can change any run's numbers."""
OPTIONAL: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "vllm": lambda config: ".vllm." in str(config.get("engine", {}).get("_target_")),
    "peft": lambda config: config.get("model", {}).get("lora") is not None,
    "math-verify": lambda config: any(section.get("verifier") == "math" for section in data_sections(config)),
    "reasoning-gym": lambda config: any("ReasoningGym" in str(s.get("_target_")) for s in data_sections(config)),
}
"""The versions of these packages count only for runs whose config uses the package."""
PATH_KEYS = ("path", "file", "weight", "checkpoint", "model", "adapter", "tokenizer", "corpus", "dataset", "source")
"""If the last word of a key is one of these (or a plural), its text may be a path to a file or folder, even without a slash."""
MOST_BYTES = 2 * 10**12
"""Bytes of a model or a data set: the largest open models have half of them."""
LONGEST_PATH = 4096
"""A text with more characters than this is not a path."""


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file and its suffix, or of the names and contents of a folder's files.

    File digests are cached by size and modification time. In a checkpoint only the model counts, not the trainer's files.

    Raises:
        UserError: for a file that cannot be read, for a pipe or a device, and for more files or bytes than a model or a data
            set has: the content of a whole disk would be read for hours.
    """
    inside = [] if path.is_file() else files_below(path)
    if not path.is_file() and not path.is_dir():
        raise UserError(f"{path} cannot be read: expected a file or a folder, found neither.")
    trainer = path / TRAINER
    ignored = (trainer, path / CHECKSUMS) if (trainer / STATE).is_file() and (path / CHECKSUMS).is_file() else ()
    files = [path] if path.is_file() else [p for p in inside if p not in ignored and not {*ignored} & {*p.parents}]
    total = hashlib.sha256()
    try:
        stats = {file: file.stat() for file in files}
        if (size := sum(stat.st_size for stat in stats.values())) > MOST_BYTES:
            raise UserError(f"{path} cannot be read: expected at most {amount(MOST_BYTES)}, found {amount(size)}.")
        for file, stat in stats.items():
            total.update(os.fsencode(file.relative_to(path) if file != path else file.suffix))
            total.update(_file_digest(file, stat.st_size, stat.st_mtime_ns))
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read ({error.strerror}).") from None
    return total.hexdigest()


@functools.cache
def _file_digest(file: Path, size: int, changed_ns: int) -> bytes:
    """Return the SHA-256 of a file; one without a size is empty, also where the kernel makes it up while it is read (/proc)."""
    if not size:
        return hashlib.sha256().digest()
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def data_sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the section ``data``, and of a mixture the sections of its sources."""
    data = config.get("data", {})
    sources = data.get("sources")
    inner = sources.values() if isinstance(sources, Mapping) else ()
    return [data, *(section for section in inner if isinstance(section, Mapping))]


@functools.cache
def code_hash() -> str:
    """Return the SHA-256 of ``rlrt/**/*.py``."""
    total = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        total.update(str(file.relative_to(PACKAGE)).encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that a run's numbers depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def installed(name: str) -> bool:
    """True if a package is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def identity(plain: Mapping[str, Any]) -> str:
    """Return a run's identity, 12 hexadecimal digits.

    Args:
        plain: the resolved config as nested plain values.
    """
    text = json.dumps(list(ingredients(plain).values()), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def ingredients(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that an identity is a hash of: ``config`` (what of it counts), ``contents`` (SHA-256 of models and data by
    dotted key), ``code`` (SHA-256 of rlrt's), ``sources`` (digests of other code by dotted key), ``versions`` of libraries.

    Args:
        plain: the resolved config as nested plain values.
    """
    contents: dict[str, str] = {}
    config = by_content(counted(plain), contents)
    used = {name: metadata.version(name) for name, uses in OPTIONAL.items() if uses(config) and installed(name)}
    return {
        "config": config,
        "contents": contents,
        "code": code_hash(),
        "sources": sources(plain),
        "versions": versions() | used,
    }


def is_neutral(key: str) -> bool:
    """True for a dotted key of a config that the identity ignores."""
    section, _, name = key.partition(".")
    ignored = {"train": IGNORED_TRAIN, "engine": IGNORED_ENGINE, "model": IGNORED_MODEL}.get(section, ())
    return section in IGNORED_SECTIONS or name.split(".")[0] in ignored


def counted(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that determines what a run computes."""
    config = {k: v for k, v in plain.items() if k not in IGNORED_SECTIONS}
    for section, ignored in (("train", IGNORED_TRAIN), ("engine", IGNORED_ENGINE), ("model", IGNORED_MODEL)):
        values = config.get(section, {})
        if isinstance(values, Mapping):  # loading refuses any other type
            config[section] = {k: v for k, v in values.items() if k not in ignored}
    return config


def by_content(value: Any, contents: dict[str, str], key: str = "") -> Any:
    """Replace every path to an existing file or folder by None, and put its content hash into ``contents`` by dotted key.

    So weights and data count by their content, wherever they are stored and whatever the key is called (see
    ``referenced_path``).
    """
    if isinstance(value, str):
        path = referenced_path(key, value)
        if path is None:
            return value
        try:
            contents[key] = content_hash(path)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        return None
    if isinstance(value, Mapping):
        return {str(k): by_content(v, contents, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [by_content(v, contents, f"{key}.{i}") for i, v in enumerate(value)]
    return value


def referenced_path(key: str, text: str) -> Path | None:
    """Return the existing file or folder that a text of a config refers to, or None.

    Under a key like ``path`` or ``weights`` any text that names an existing file or folder counts. Under any other key only a
    text with a slash that names an existing file counts: a folder may be one that a run writes to.
    """
    parts = key.split(".")
    key_words = re.split(r"[_0-9]+", parts[-2] if parts[-1].isdigit() and len(parts) > 1 else parts[-1])
    is_path_key = bool({*PATH_KEYS} & {key_words[-1], key_words[-1].removesuffix("s")}) and parts[0] not in (
        "teacher",
        "method",
    )
    if not (is_path_key or "/" in text) or "\n" in text or len(text) > LONGEST_PATH:
        return None
    try:
        path = local_folder(text)
        return path if path is not None and (is_path_key or path.is_file()) else None
    except (OSError, ValueError, RuntimeError):  # the text is not a valid path
        return None
