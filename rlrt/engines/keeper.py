"""Keeps the process group of a run's server, and ends all of it when the run's process is gone, however that went.

``python keeper.py OWNER FOLDER COMMAND...``, with the standard library alone: it starts within milliseconds. OWNER is the pid
of the process that started it and holds the other end of its standard input. FOLDER is removed at the end.

A server of vLLM is several processes, and those that are left when one is killed go on for ever with their memory. SLURM sends
its signals to all processes of a job; the run still needs its server then, to end its step and save. So the server's processes
have these signals blocked, and only the keeper ends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that do not end a run at once."""
LOOK_S = 0.3
"""Seconds between two looks at the owner and the server."""
PATIENCE_S = 5.0
"""Seconds that helpers of the server get to remove its shared memory."""
KEEPER = "RLRT_SERVER_KEEPER"
"""Environment variable of the server's processes: pid of their keeper."""
PR_SET_PDEATHSIG = 1


def keep(owner: int, folder: str, command: list[str]) -> int:
    """Start a command, wait until it ends or the owner is gone, and end all of its group; return an exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    code = 0
    if os.getppid() == owner:
        environment = {**os.environ, KEEPER: str(os.getpid())}
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, preexec_fn=bind_to_keeper
        )
        while server.poll() is None and os.getppid() == owner:
            if select.select([sys.stdin], [], [], LOOK_S)[0]:  # the owner closed it, or ended
                break
        code = server.poll() or 0
        end_group(server.pid)
    shutil.rmtree(folder, ignore_errors=True)
    return abs(code)


def bind_to_keeper() -> None:
    """In the server's first process: block the signals, for all that it will start; be killed if the keeper is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_group(group: int) -> None:
    """Kill a process group, but first let Python's resource trackers, which end by themselves then, remove shared memory."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and (members := members_of(group)):
        for pid in members:
            if b"resource_tracker" not in command_of(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def members_of(group: int) -> list[int]:
    """Return the processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state not in ("Z", "X"):
                found.append(int(stat.parent.name))
    return found


def command_of(pid: int) -> bytes:
    """Return the command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
