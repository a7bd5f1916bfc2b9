"""How a run ended whose process is gone without a word: killed, and whether the kernel did it for lack of memory."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrt.records.files import mapping, whole
from rlrt.records.lease import LEASE, holder, is_held

PROC = Path("/proc")
KILLS = "memory_kills"
"""Key of ``summary.json``: ``kills`` when the run's state became running."""
KILLED = "its process was killed"
FOR_MEMORY = (
    "its process was killed, probably by the kernel for lack of memory, since that ended {count} of this machine's processes "
    "meanwhile; set train.token_budget=auto, or ask python -m rlrt.preflight which key helps"
)


def kills() -> dict[str, Any]:
    """Return how many processes this machine's kernel has killed for lack of memory since its start: ``host``, ``boot`` (the id
    of that start) and ``count``; {} where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        counts = dict(line.split() for line in (PROC / "vmstat").read_text().splitlines())
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return {"host": socket.gethostname(), "boot": boot, "count": int(counts["oom_kill"])}
    return {}


def why_gone(summary: Mapping[str, Any]) -> str:
    """Say how a run ended whose summary still says running and whose process is gone; the kernel's count of kills is evidence
    only on the machine where the run was, since its last start."""
    then, now = mapping(summary.get(KILLS)), kills()
    same = bool(now) and all(then.get(name) == now[name] for name in ("host", "boot"))
    count = now["count"] - whole(then.get("count")) if same else 0
    return FOR_MEMORY.format(count=count) if count > 0 else KILLED


def is_gone(folder: Path, summary: Mapping[str, Any]) -> bool:
    """True if a run's summary says running, the run's process was on this machine, and no process holds its lease."""
    here = holder(folder / LEASE).get("host") == socket.gethostname()
    return summary.get("state") == "running" and here and not is_held(folder / LEASE)
