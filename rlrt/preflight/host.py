"""RAM of a node whose processes compute on GPUs: each process reads the whole model before it goes to its GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlrt.errors import amount
from rlrt.execution.memory.estimate import host_bytes
from rlrt.execution.memory.free import ram
from rlrt.preflight.device import jobs_at_once, processes_of_a_node
from rlrt.preflight.finding import Finding
from rlrt.preflight.fit import Group
from rlrt.sweep.launchers import SlurmLauncher

GIB = 2**30


def host_memory(groups: Sequence[Group], launcher: Any, several: bool) -> list[Finding]:
    """Return the finding on the RAM of a node; none if no job computes on a GPU.

    Args:
        groups: the jobs with their estimates.
        launcher: that starts them.
        several: True for a sweep.
    """
    on_gpu = [g for g in groups if g.device.kind != "cpu"]
    if not on_gpu:
        return []
    slurm, elsewhere = isinstance(launcher, SlurmLauncher), on_gpu[0].device.elsewhere
    tasks, jobs = processes_of_a_node(launcher), 1 if slurm or elsewhere else jobs_at_once(launcher, several)
    needed = jobs * max(
        host_bytes(g.case.sizes(g.case.settings), g.case.settings, g.case.layout, tasks) for g in on_gpu
    )
    processes = jobs * tasks
    who = "1 process of a node takes" if processes == 1 else f"{processes} processes of a node take"
    sentence = f"{who} {amount(needed)} of RAM while models are read"
    asked = f"set hydra.launcher.mem_gb={needed // GIB + 1}"
    if slurm and launcher.mem_gb is None:
        return [Finding("warning", "host memory", f"{sentence}, and the cluster's default may be less; {asked}")]
    if elsewhere and not slurm:
        return [
            Finding("skipped", "host memory", f"{sentence}; --memory-gb means another machine, whose RAM is not known")
        ]
    free = int(launcher.mem_gb * GIB) if slurm else ram()[0]
    source = "hydra.launcher.mem_gb" if slurm else "free here"
    if needed <= free:
        return [Finding("ok", "host memory", f"{sentence}, of {amount(free)} ({source})")]
    remedy = asked if slurm else "run fewer jobs or processes at a time"
    return [Finding("problem", "host memory", f"{sentence}, of {amount(free)} ({source}); {remedy}")]
