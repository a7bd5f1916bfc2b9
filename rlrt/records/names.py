"""Names of folders: readable, and the same for the same command."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence

from rlrt.records.secrets import redacted

NO_PART = ("hydra", "resume", "tracking")
"""Beginnings of overrides that change nothing of what is computed: no part of a name or of a sweep's hash."""


MAX_NAME = 80
"""Characters of the readable part of a folder's name."""


def readable(overrides: Iterable[str], fallback: str) -> str:
    """A folder name from command-line overrides: ``method=rlrt seed=1`` gives ``method=rlrt,seed=1``."""
    kept = [redacted(o).lstrip("+~") for o in overrides if not o.lstrip("+~").startswith((*NO_PART, "tuned@"))]
    short = re.sub(r"\d+\.\d{5,}(e[+-]?\d+)?", lambda m: f"{float(m[0]):.4g}", ",".join(kept))
    name = re.sub(r"[^A-Za-z0-9=.,_+-]+", "_", short) or fallback
    return name if len(name) <= MAX_NAME else name[:MAX_NAME]


def sweep_hash(overrides: Iterable[str]) -> str:
    """8 hexadecimal digits of the sorted overrides: the same command finds its sweep again."""
    kept = sorted(o for o in overrides if not o.lstrip("+~").startswith(NO_PART))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]


def name_sweep(overrides: Sequence[str]) -> None:
    """Tell Hydra's config, by the environment variable that ``hydra.sweep.dir`` reads, what a sweep is called."""
    os.environ["RLRT_SWEEP_NAME"] = f"{readable(overrides, 'sweep')}-{sweep_hash(overrides)}"
