"""What makes two runs the same run: config, code, versions, and the content of models and data."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rlrt.paths import CHECKSUMS, TRAINER, local_folder

PACKAGE = Path(__file__).parent
IGNORED_SECTIONS = ("hydra", "tracking", "resume", "threads", "trial")
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
NO_PART = ("hydra", "resume", "tracking")
"""Beginnings of overrides that change nothing of what is computed: no part of a name or of a sweep's hash."""
MAX_NAME = 80
"""Characters of the readable part of a folder's name."""


def content_hash(path: Path) -> str:
    """SHA-256 over a file, or over the names and contents of a folder's files; cached by size and time of change.

    Of a checkpoint the model counts alone, and not what the trainer needs to go on.
    """
    inside = [] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    own = (path / TRAINER, path / CHECKSUMS)
    files = [path] if path.is_file() else [p for p in inside if p not in own and path / TRAINER not in p.parents]
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        total.update(str(file.relative_to(path) if file != path else file.name).encode())
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
    config = {k: v for k, v in plain.items() if k not in IGNORED_SECTIONS}
    config["train"] = {k: v for k, v in config.get("train", {}).items() if k not in IGNORED_TRAIN}
    config["engine"] = {k: v for k, v in config.get("engine", {}).items() if k not in IGNORED_ENGINE}
    contents = {}
    for section, key in (("model", "path"), ("data", "path"), ("data", "heldout_path")):
        path = config.get(section, {}).get(key)
        folder = local_folder(path) if isinstance(path, str) else None
        if folder is not None:
            config[section] = {k: v for k, v in config[section].items() if k != key}
            contents[section if key == "path" else f"{section}.{key}"] = content_hash(folder)
    used = {name: metadata.version(name) for name, uses in OPTIONAL.items() if uses(config) and installed(name)}
    suites = config.get("eval", {}).get("suites") or {}
    for name, suite in suites.items():
        folder = local_folder(suite["path"]) if isinstance(suite, dict) and isinstance(suite.get("path"), str) else None
        if folder is not None:
            contents[f"eval.suites.{name}"] = content_hash(folder)
            suites = {**suites, name: {k: v for k, v in suite.items() if k != "path"}}
    if suites:
        config["eval"] = config["eval"] | {"suites": suites}
    text = json.dumps([config, contents, code_hash(), versions() | used], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def readable(overrides: Iterable[str], fallback: str) -> str:
    """A folder name from command-line overrides: ``method=rlrt seed=1`` gives ``method=rlrt,seed=1``."""
    kept = [o.lstrip("+~") for o in overrides if not o.lstrip("+~").startswith(NO_PART)]
    short = re.sub(r"\d+\.\d{5,}(e[+-]?\d+)?", lambda m: f"{float(m[0]):.4g}", ",".join(kept))
    name = re.sub(r"[^A-Za-z0-9=.,_+-]+", "_", short) or fallback
    return name if len(name) <= MAX_NAME else name[:MAX_NAME]


def sweep_hash(overrides: Iterable[str]) -> str:
    """8 hexadecimal digits of the sorted overrides: the same command finds its sweep again."""
    kept = sorted(o for o in overrides if not o.lstrip("+~").startswith(NO_PART))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
