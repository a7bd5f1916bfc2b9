"""Memory that one process will have, on this machine or where a launcher starts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from rlrt.config.schema import Settings
from rlrt.execution.memory.free import ram
from rlrt.sweep.launchers import LocalLauncher, SlurmLauncher

GB = 10**9
ELSEWHERE = "--memory-gb"
"""Source of a number of bytes that was typed."""


@dataclass(frozen=True)
class Device:
    """The kind of device that a process computes on, and the memory that it can use.

    Attributes:
        kind: cpu or cuda.
        free, whole: bytes free for one process, and bytes of the device; None if unknown on this machine.
        sharing: number of processes or jobs that share the device.
        source: source of the number of bytes.
    """

    kind: str
    free: int | None
    whole: int | None
    sharing: int
    source: str

    @property
    def elsewhere(self) -> bool:
        """True if another machine is meant (``--memory-gb``)."""
        return self.source == ELSEWHERE


def device_of(settings: Settings, launcher: Any, several: bool, memory_gb: float | None) -> Device:
    """Return the device of a job.

    Args:
        launcher: the launcher of ``-m``, or of ``hydra/launcher=slurm``.
        several: True for a sweep, whose jobs run in parallel.
        memory_gb: value of ``--memory-gb``: memory of one device, in 10^9 bytes.
    """
    slurm = isinstance(launcher, SlurmLauncher)
    kind = kind_of(settings, launcher, memory_gb)
    tasks = processes_of_a_node(launcher)
    jobs = sharing_jobs(launcher, several, kind)
    if memory_gb is not None:
        device_bytes = int(memory_gb * GB)
        return Device(kind, device_bytes // jobs, device_bytes, jobs, ELSEWHERE)
    if slurm:
        if kind == "cpu" and launcher.mem_gb is not None:
            device_bytes = int(launcher.mem_gb * 2**30)
            return Device(kind, device_bytes // tasks, device_bytes, tasks, "hydra.launcher.mem_gb")
        return Device(kind, None, None, 1, "not known here; give --memory-gb N")
    if kind == "cuda":
        count = torch.cuda.device_count()
        memory = [torch.cuda.mem_get_info(i) for i in range(count)]
        free, whole = min(memory)
        return Device(kind, free // jobs, whole, jobs, f"free on the {'fullest of ' * (count > 1)}{count} GPU here")
    free, whole = ram()
    return Device(kind, free // (jobs * tasks), whole, jobs * tasks, "RAM that is free here")


def jobs_at_once(launcher: Any, several: bool) -> int:
    """Return the number of a sweep's jobs that run on this machine at a time."""
    return launcher.jobs_at_once() if several and isinstance(launcher, LocalLauncher) else 1


def sharing_jobs(launcher: Any, several: bool, kind: str) -> int:
    """Return the number of jobs that share one device: all that run at a time on a CPU; on GPUs each has its own while there
    are enough."""
    jobs = jobs_at_once(launcher, several)
    if kind == "cpu" or jobs == 1:
        return jobs
    cards = len(launcher.cards())
    if not cards:  # the machine that is meant has them
        return launcher.n_jobs or 1
    return max(1, -(-jobs * launcher.cards_per_job() // cards))


def processes_of_a_node(launcher: Any) -> int:
    """Return the number of processes of one run on one machine."""
    tasks: int = launcher.tasks_per_node
    return tasks if isinstance(launcher, SlurmLauncher) else max(tasks, local_processes())


def kind_of(settings: Settings, launcher: Any, memory_gb: float | None) -> str:
    """Return cpu or cuda: the key ``device``, or under ``auto`` the kind that the job will get."""
    if settings.device != "auto":
        return settings.device.partition(":")[0]
    if isinstance(launcher, SlurmLauncher):
        more = launcher.additional_parameters
        asked = any("gpu" in key for key in more) or "gpu" in str(more.get("gres", ""))
        return "cuda" if launcher.gpus_per_node or asked else "cpu"
    return "cuda" if torch.cuda.is_available() or memory_gb is not None else "cpu"


def local_processes() -> int:
    """Return the number of processes of one run on this machine, from torchrun's or accelerate's variables."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1))


def processes_of(launcher: Any) -> int:
    """Return the number of processes of one run: the launcher's nodes times tasks, if it has such keys, else the
    environment's."""
    if isinstance(launcher, SlurmLauncher):
        return launcher.nodes * launcher.tasks_per_node
    return max(launcher.nodes * launcher.tasks_per_node, int(os.environ.get("WORLD_SIZE") or 1))
