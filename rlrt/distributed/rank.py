"""Rank and number of processes from torchrun's environment variables; importing this module is fast."""

from __future__ import annotations

import os

EXIT = 3
"""Exit code of a process that ends because another rank of its run ended."""
HOSTS = "RLRT_HOSTS"
"""Environment variable: hosts of a job's tasks, separated by commas, each with as many ranks, in the order of ranks."""


def processes() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True if this process is rank 0: the one that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0
