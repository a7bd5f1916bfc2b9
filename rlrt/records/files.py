"""Small files: atomic writes, and JSON read as data."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger("rlrt")


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Replace a small JSON file atomically.

    Args:
        private: only the owner may read the file, from its first byte on.
    """
    replace_text(path, json.dumps(value, indent=1, default=str) + "\n", private)


def replace_text(path: Path, text: str, private: bool = False) -> None:
    """Replace a small text file atomically; if two processes write the same file, the last one wins completely."""
    work = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    rights = 0o600 if private else stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666
    work.unlink(missing_ok=True)
    with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, rights), "w", encoding="utf-8") as file:
        file.write(text)
    work.replace(path)


def tensors_of(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: dtype, shape and place of each tensor by name, and ``__metadata__``."""
    with file.open("rb") as handle:
        header: dict[str, Any] = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return header


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object; {} if the file is missing, unreadable or not an object."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def mapping(value: Any) -> dict[str, Any]:
    """Return the value if it is a mapping, else {} (for fields of untrusted JSON)."""
    return value if isinstance(value, dict) else {}


@contextmanager
def or_logged(file: Path) -> Iterator[None]:
    """Log an OSError of the block instead of raising it: the error being handled already is the more useful one."""
    try:
        yield
    except OSError as error:
        log.error("%s cannot be written (%s)", file, error.strerror)


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that holds a folder or would hold it."""
    return shutil.disk_usage(nearest_existing(folder)).free
