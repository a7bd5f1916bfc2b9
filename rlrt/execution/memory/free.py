"""Memory that is free on this machine for a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # commands that only read import this file, and torch takes a second

SHARING = "RLRT_JOBS_AT_ONCE"
"""Variable of the environment: jobs of a sweep that the local launcher runs at a time on this machine."""


def ram(proc: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Return (free, whole) bytes of this machine's memory, or of this process's control group if that has less."""
    lines = dict(line.split(":", 1) for line in proc.read_text().splitlines() if ":" in line)
    free, whole = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit_bytes, used_bytes = (int((groups / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no such group, or "max"
            continue
        if limit_bytes < whole:
            whole, free = limit_bytes, min(free, max(0, limit_bytes - used_bytes))
    return free, whole


def share_of_device(device: torch.device) -> int:
    """Return the bytes of a device that this process may take in all, what it holds already included: its part of what is free,
    where other processes of the run or other jobs of the sweep take theirs at the same moment."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return (ram()[0] + resident()) // (ranks_here() * max(1, int(os.environ.get(SHARING) or 1)))


def whole_device(device: torch.device) -> int:
    """Return the bytes that a device would have for this process and those of its run beside it, were nothing else there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return ram()[1] // ranks_here()


def ranks_here() -> int:
    """Return how many processes of this run are on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def resident(proc: Path = Path("/proc/self/statm")) -> int:
    """Return the bytes of memory that this process holds."""
    return int(proc.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
