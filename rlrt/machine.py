"""This machine and its processes: an identity under which process ids mean the same, and which of them live."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

PROC = Path("/proc")


def machine() -> str:
    """Return an identity of this machine since its last start: two processes with the same one see each other's process ids.

    A hostname alone is none: two machines may have one, and containers of one machine have process ids of their own.
    """
    boot = pids = ""
    with contextlib.suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        pids = os.readlink(PROC / "self/ns/pid")
    return f"{socket.gethostname()} {boot} {pids}"


def started(pid: int) -> str:
    """Return when a process of this machine started, in the kernel's ticks; "" for a zombie or no process."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return ""


def alive(pid: int) -> bool:
    """True if a process of this machine runs; False for a zombie."""
    return bool(started(pid))
