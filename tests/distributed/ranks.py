"""Several ranks as forks of this process: processes with torchrun's variables, without importing everything again."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable

import torch


def start(size: int, work: Callable[[], object]) -> list[int]:
    """Fork ranks that call ``work``, and return their pids; their exit code is 1 where it raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
                os.environ |= {k: str(v) for k, v in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
                torch.set_num_threads(1)
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def ends(pids: list[int]) -> list[int]:
    """Wait for ranks and return their exit codes; those that a signal ended have its number, negative."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def together(size: int, work: Callable[[], object]) -> None:
    """Let ranks do something and end well."""
    assert ends(start(size, work)) == [0] * size
