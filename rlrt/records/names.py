"""Names of run and sweep folders: readable, and equal for equal commands."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence

from rlrt.records.secrets import redacted

NO_PART = ("hydra", "resume", "origin", "tracking")
"""Overrides with these prefixes do not change what is computed; they enter neither a name nor a sweep's hash."""
MAX_NAME = 80
"""The readable part of a folder's name has at most this many characters."""


def readable(overrides: Iterable[str], fallback: str) -> str:
    """Build a folder name from command-line overrides: ``method=rlrt seed=1`` gives ``method=rlrt,seed=1``."""
    parts = [redacted(o).lstrip("+~") for o in overrides if not o.lstrip("+~").startswith((*NO_PART, "tuned@"))]
    short = re.sub(r"\d+\.\d{5,}(e[+-]?\d+)?", lambda m: f"{float(m[0]):.4g}", ",".join(parts))
    name = re.sub(r"[^A-Za-z0-9=.,_+-]+", "_", short) or fallback
    return name if len(name) <= MAX_NAME else name[:MAX_NAME]


def sweep_hash(overrides: Iterable[str]) -> str:
    """Return 8 hexadecimal digits over the sorted overrides, so that the same command finds its sweep again."""
    parts = sorted(o for o in overrides if not o.lstrip("+~").startswith(NO_PART))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def name_sweep(overrides: Sequence[str]) -> None:
    """Set the environment variable from which ``hydra.sweep.dir`` takes the sweep's name."""
    os.environ["RLRT_SWEEP_NAME"] = f"{readable(overrides, 'sweep')}-{sweep_hash(overrides)}"
