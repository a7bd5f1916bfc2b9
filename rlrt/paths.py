"""Where a model or data path leads, without loading anything."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = Path(__file__).parent / "embedded"
"""The tiny Qwen3 and its tokenizer, inside the package; ``rlrt.pretrain`` made it."""


def resolve_path(path: str) -> str:
    """The folder or hub id behind ``model.path``."""
    return str(EMBEDDED) if path == "embedded" else path


def local_folder(path: str) -> Path | None:
    """The file or folder that a path means here, or None for a hub id."""
    found = Path(resolve_path(path)).expanduser()
    return found if found.exists() else None
