"""Small files: replaced in one go, read as data."""

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
    """Replace a small JSON file in one go.

    Args:
        private: whether its owner alone may read the file, from its first byte on.
    """
    replace_text(path, json.dumps(value, indent=1, default=str) + "\n", private)


def replace_text(path: Path, text: str, private: bool = False) -> None:
    """Replace a small text file in one go; two processes may write one file: the last one wins, whole."""
    work = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    rights = 0o600 if private else stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666
    work.unlink(missing_ok=True)
    with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, rights), "w", encoding="utf-8") as file:
        file.write(text)
    work.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object, or {} where there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def mapping(value: Any) -> dict[str, Any]:
    """A value of somebody's JSON where an object belongs; {} for all else."""
    return value if isinstance(value, dict) else {}


@contextmanager
def or_logged(file: Path) -> Iterator[None]:
    """Go on where a small file cannot be written: the error that is on its way says more than this one would."""
    try:
        yield
    except OSError as error:
        log.error("%s cannot be written (%s)", file, error.strerror)


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk where a folder is, or would be made."""
    return shutil.disk_usage(nearest_existing(folder)).free
