"""How much memory a process will find, here or where a launcher sends it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlrt.config.schema import Settings
from rlrt.sweep.launchers import LocalLauncher, SlurmLauncher

GB = 10**9


@dataclass(frozen=True)
class Device:
    """Where a process computes, and what it may hold.

    Attributes:
        kind: cpu or cuda.
        free, whole: bytes for one process, and of the device; None: not known here.
        sharing: processes or jobs that share them.
        said: where the number comes from.
    """

    kind: str
    free: int | None
    whole: int | None
    sharing: int
    said: str


def device_of(settings: Settings, launcher: Any, several: bool, memory_gb: float | None) -> Device:
    """The device of a job.

    Args:
        launcher: of ``-m``, or ``hydra/launcher=slurm``.
        several: whether this is a sweep, whose jobs run beside each other.
        memory_gb: what was typed as ``--memory-gb``: of one device, in 10^9 bytes.
    """
    slurm = isinstance(launcher, SlurmLauncher)
    kind = kind_of(settings, launcher, memory_gb)
    tasks = launcher.tasks_per_node if slurm else max(launcher.tasks_per_node, local_processes())
    jobs = launcher.n_jobs if several and isinstance(launcher, LocalLauncher) else 1
    if memory_gb is not None:
        given = int(memory_gb * GB)
        return Device(kind, given // jobs, given, jobs, "--memory-gb")
    if slurm:
        if kind == "cpu" and launcher.mem_gb is not None:
            given = int(launcher.mem_gb * 2**30)
            return Device(kind, given // tasks, given, tasks, "hydra.launcher.mem_gb")
        return Device(kind, None, None, 1, "not known here; give --memory-gb N")
    if kind == "cuda":
        count = torch.cuda.device_count()
        seen = [torch.cuda.mem_get_info(i) for i in range(count)]
        free, whole = min(seen)
        return Device(kind, free // jobs, whole, jobs, f"free on the {'fullest of ' * (count > 1)}{count} GPU here")
    free, whole = ram()
    return Device(kind, free // (jobs * tasks), whole, jobs * tasks, "RAM that is free here")


def kind_of(settings: Settings, launcher: Any, memory_gb: float | None) -> str:
    """cpu or cuda: as ``device`` says; under ``auto`` by what the job will find."""
    if settings.device != "auto":
        return settings.device.partition(":")[0]
    if isinstance(launcher, SlurmLauncher):
        return "cuda" if launcher.gpus_per_node else "cpu"
    return "cuda" if torch.cuda.is_available() or memory_gb is not None else "cpu"


def local_processes() -> int:
    """Processes of one run on this machine, as torchrun and accelerate say."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1))


def processes_of(launcher: Any) -> int:
    """Processes of one run: nodes times tasks of the launcher where it has such keys, else as the environment says."""
    if isinstance(launcher, SlurmLauncher):
        return launcher.nodes * launcher.tasks_per_node
    return max(launcher.tasks_per_node, int(os.environ.get("WORLD_SIZE") or 1))


def ram(proc: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """(free, whole) bytes of this machine's memory, or of the control group that bounds this process where that is less."""
    lines = dict(line.split(":", 1) for line in proc.read_text().splitlines() if ":" in line)
    free, whole = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (int((groups / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no such group, or "max"
            continue
        if most < whole:
            whole, free = most, min(free, max(0, most - now))
    return free, whole
