"""Two hosts on this machine: forks with a network, a hostname and an /etc/hosts of their own, and a cable between them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x20000, 0x4000000, 0x40000000
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29_400


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


class Hosts:
    """Ranks 0 and 1, each a fork on a host of its own (``node0``, ``node1``) that calls ``work(rank)``.

    Args:
        hosts: /etc/hosts of each.
        folder: for their files.
        environment: variables of both, besides torchrun's.
    """

    def __init__(self, hosts: tuple[str, str], folder: Path, work: Callable[[int], object], **environment: str) -> None:
        self._folder, self._work, self._environment = folder, work, environment
        gates = [os.pipe() for _ in hosts]
        begun = [os.pipe() for _ in hosts]
        self.pids = []
        for rank, text in enumerate(hosts):
            (folder / f"hosts{rank}").write_text(f"127.0.0.1 localhost\n{text}\n")
            pid = os.fork()
            if pid == 0:
                self._live(rank, begun[rank][1], gates[rank][0])
            self.pids.append(pid)
        if any(os.read(pipe[0], 1) != b"y" for pipe in begun):
            self.end()
            pytest.skip("this machine gives no namespaces")
        shell("ip", "link", "add", "eth0", "netns", str(self.pids[0]), "type", "veth", "peer", "name", "eth0", "netns",
              str(self.pids[1]))  # fmt: skip
        for pid, address, gate in zip(self.pids, ADDRESSES, gates, strict=True):
            for words in (("link", "set", "lo", "up"), ("addr", "add", f"{address}/24", "dev", "eth0"),
                          ("link", "set", "eth0", "up")):  # fmt: skip
                shell("nsenter", "-t", str(pid), "-n", "ip", *words)
            os.write(gate[1], b"y")

    def _live(self, rank: int, begun: int, gate: int) -> None:
        code = 1
        try:
            flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWNET
            if ctypes.CDLL(None, use_errno=True).unshare(flags) == 0:
                socket.sethostname(f"node{rank}")
                shell("mount", "--make-rprivate", "/")
                (self._folder / "resolv.conf").touch()
                for name, file in (("hosts", f"hosts{rank}"), ("resolv.conf", "resolv.conf")):
                    shell("mount", "--bind", str(self._folder / file), f"/etc/{name}")
                os.write(begun, b"y")
                os.read(gate, 1)
                names = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "node0", "MASTER_PORT": PORT}
                os.environ |= {k: str(v) for k, v in names.items()} | self._environment
                torch.set_num_threads(1)
                self._work(rank)
                code = 0
            else:
                os.write(begun, b"n")
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def power_off(self, rank: int) -> None:
        """The cable first: a kernel that lives on would tell the other that connections are closed."""
        shell("nsenter", "-t", str(self.pids[rank]), "-n", "ip", "link", "set", "eth0", "down")
        os.kill(self.pids[rank], signal.SIGKILL)

    def end(self) -> None:
        for pid in self.pids:
            with_no_such(pid)


def with_no_such(pid: int) -> None:
    """End a fork that may have ended."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass
