"""What the environment says of this process among those of its run (torchrun's variables); nothing slow is imported."""

from __future__ import annotations

import os

EXIT = 3
"""Exit code of a process that ends because another one of its run did."""


def processes() -> int:
    """How many processes this run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the first of its run: the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0
