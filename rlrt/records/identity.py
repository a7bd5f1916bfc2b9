"""What makes two runs the same run: config, code, versions, and the content of models and data."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rlrt.paths import CHECKSUMS, PACKAGE, STATE, TRAINER, local_folder
from rlrt.records.user_code import sources

IGNORED_SECTIONS = ("hydra", "tracking", "resume", "threads", "trial", "distributed")
IGNORED_TRAIN = ("save_every", "keep_last")
IGNORED_ENGINE = ("url", "transfer_dir", "timeout_s")
"""Keys that say where and how a run is kept, not what it computes."""
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
"""Packages whose version can change a run's numbers."""
OPTIONAL: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "vllm": lambda config: ".vllm." in str(config.get("engine", {}).get("_target_")),
    "peft": lambda config: config.get("model", {}).get("lora") is not None,
    "math-verify": lambda config: config.get("data", {}).get("verifier") == "math",
    "reasoning-gym": lambda config: "ReasoningGym" in str(config.get("data", {}).get("_target_")),
}
"""Packages that count for the runs that use them alone."""
PLACES = ("path", "file", "weight", "checkpoint", "model", "adapter", "tokenizer", "corpus", "dataset", "source")
"""Last words of keys (or their plurals) whose text may be a path, also one without a slash, to a file or a folder."""
LONGEST_PATH = 4096
"""Characters of a text that may be a path."""


def content_hash(path: Path) -> str:
    """SHA-256 over a file and its ending, or over the names and contents of a folder's; cached by size and time of change.

    Of a checkpoint the model counts alone, and not what the trainer needs to go on.
    """
    inside = [] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    trainers = path / TRAINER
    own = (trainers, path / CHECKSUMS) if (trainers / STATE).is_file() and (path / CHECKSUMS).is_file() else ()
    files = [path] if path.is_file() else [p for p in inside if p not in own and not {*own} & {*p.parents}]
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        total.update(str(file.relative_to(path) if file != path else file.suffix).encode())
        total.update(_file_digest(file, stat.st_size, stat.st_mtime_ns))
    return total.hexdigest()


@functools.cache
def _file_digest(file: Path, size: int, changed_ns: int) -> bytes:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


@functools.cache
def code_hash() -> str:
    """SHA-256 over ``rlrt/**/*.py``."""
    total = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        total.update(str(file.relative_to(PACKAGE)).encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the libraries that a run's numbers depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def installed(name: str) -> bool:
    """Whether a package is there."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def identity(plain: Mapping[str, Any]) -> str:
    """A run's identity: 12 hexadecimal digits.

    Args:
        plain: the resolved config as nested plain values.
    """
    contents: dict[str, str] = {}
    config = by_content(counted(plain), contents)
    used = {name: metadata.version(name) for name, uses in OPTIONAL.items() if uses(config) and installed(name)}
    everything = [config, contents, code_hash(), sources(plain), versions() | used]
    text = json.dumps(everything, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def counted(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that says what a run computes."""
    config = {k: v for k, v in plain.items() if k not in IGNORED_SECTIONS}
    for section, ignored in (("train", IGNORED_TRAIN), ("engine", IGNORED_ENGINE)):
        values = config.get(section, {})
        if isinstance(values, Mapping):  # loading says in a sentence that nothing else will do
            config[section] = {k: v for k, v in values.items() if k not in ignored}
    return config


def by_content(value: Any, contents: dict[str, str], key: str = "") -> Any:
    """Nested plain values without the paths that lead to something here; ``contents`` gets its digest by the key in full.

    So weights and data count by what they are, wherever they lie and whatever the key is called (see ``here``).
    """
    if isinstance(value, str):
        found = here(key, value)
        if found is None:
            return value
        contents[key] = content_hash(found)
        return None
    if isinstance(value, Mapping):
        return {str(k): by_content(v, contents, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [by_content(v, contents, f"{key}.{i}") for i, v in enumerate(value)]
    return value


def here(key: str, text: str) -> Path | None:
    """The file or folder of this machine that a text of a config means; None for all other texts.

    Under a key like ``path`` or ``weights`` any text that leads to a file or a folder; under any other key a text with a slash
    that leads to a file: a folder may be one that a run writes to.
    """
    parts = key.split(".")
    words = re.split(r"[_0-9]+", parts[-2] if parts[-1].isdigit() and len(parts) > 1 else parts[-1])
    named = bool({*PLACES} & {words[-1], words[-1].removesuffix("s")}) and parts[0] not in ("teacher", "method")
    if not (named or "/" in text) or "\n" in text or len(text) > LONGEST_PATH:
        return None
    try:
        found = local_folder(text)
        return found if found is not None and (named or found.is_file()) else None
    except (OSError, ValueError, RuntimeError):  # no path at all
        return None
