"""The processes of a run, and what they tell each other. One process alone is a world too: then everything here is free.

Every process runs the same loop on the same prompts; a share of the rollouts, of the scoring and of the update is its own. What
is gathered is the same everywhere, so all processes take the same decisions without asking.
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rlrt.distributed.ports import probed
from rlrt.distributed.rank import processes
from rlrt.distributed.watch import Watch
from rlrt.errors import UserError

T = TypeVar("T")


class World:
    """A run that has one process.

    Attributes:
        rank, size: this process's number, and how many there are.
        local_rank: its number on its machine.
    """

    rank = 0
    size = 1
    local_rank = 0

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files and speaks to MLflow."""
        return self.rank == 0

    def gather(self, mine: Sequence[T]) -> list[T]:
        """What every process has, rank after rank."""
        return list(mine)

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return flag

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return number

    def sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over the processes, name by name; a process may lack a name."""
        return numbers

    def on_main(self, action: Callable[[], T]) -> T:
        """What ``action`` gives, or raises for the user, in the main process, which alone runs it."""
        return action()

    def twin(self) -> World:
        """The same processes on a line of their own: a thread may talk on it while another one talks here."""
        return self

    def explained(self, error: BaseException) -> BaseException:
        """The error to show for ``error``: what another process did, where that is its cause."""
        return error

    def leave(self) -> None:
        """The run is over in this process."""


class Several(World):
    """This process among several (``connect`` makes it). Everything here must be called by all processes, in one order."""

    def __init__(self, rank: int, size: int, local_rank: int, group: Any, watch: Watch) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._group, self._watch = group, watch

    def gather(self, mine: Sequence[T]) -> list[T]:
        """What every process has, rank after rank."""
        with self._watch.meeting():
            found: list[Any] = [None] * self.size
            dist.all_gather_object(found, list(mine), group=self._group)
        return [item for part in found for item in part]

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return any(self.gather([flag]))

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return max(self.gather([number]))

    def sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over the processes, name by name; a process may lack a name."""
        total: dict[str, float] = {}
        for part in self.gather([numbers]):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def on_main(self, action: Callable[[], T]) -> T:
        """What ``action`` gives, or raises for the user, in the main process, which alone runs it."""
        told: list[Any] = [None, None]
        if self.main:
            try:
                told[0] = action()
            except UserError as error:
                told[1] = error
        with self._watch.meeting():
            dist.broadcast_object_list(told, src=0, group=self._group)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def twin(self) -> World:
        """The same processes on a line of their own: a thread may talk on it while another one talks here."""
        return Several(self.rank, self.size, self.local_rank, dist.new_group(backend="gloo"), self._watch)

    def explained(self, error: BaseException) -> BaseException:
        """The error to show for ``error``: what another process did, where that is its cause."""
        return self._watch.explained(error)

    def leave(self) -> None:
        """The run is over in this process."""
        self._watch.stop()
        in_peace = not self._watch.failed and sys.exc_info()[0] is None  # else goodbyes could take for ever
        if in_peace and dist.is_initialized():  # vLLM, at its end, leaves for all
            dist.destroy_process_group()


ALONE = World()


def connect(patience_s: float, on_gpu: bool) -> World:
    """Join the other processes of this run, which torchrun's variables name (RANK, WORLD_SIZE, MASTER_ADDR, ...).

    Args:
        patience_s: how long a process may keep the others waiting before the run ends.
        on_gpu: whether tensors on GPUs will be exchanged, through NCCL.

    Raises:
        UserError: where the others cannot be met, or the port is taken.
    """
    size = processes()
    if size == 1:
        return ALONE
    lacking = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if lacking:
        raise UserError(
            f"WORLD_SIZE={size}: several processes need {', '.join(lacking)} too; start them with torchrun --standalone "
            "--nproc-per-node=N -m rlrt.run ..., or leave WORLD_SIZE out."
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    refuse_taken_port(rank)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=patience_s),
        )
    except (RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {rank} of {size} could not meet the others at {place} (MASTER_ADDR:MASTER_PORT): {first}; are all of them "
            "started, and can this machine reach that one?"
        ) from None
    if on_gpu:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    from torch.distributed.distributed_c10d import _get_default_store

    watch = Watch(_get_default_store(), rank, size, patience_s)
    watch.start()
    return Several(rank, size, local_rank, dist.new_group(backend="gloo"), watch)


def refuse_taken_port(rank: int) -> None:
    """Refuse a rendezvous whose port another program has: the processes would wait for each other in vain.

    Raises:
        UserError: naming the port.
    """
    if rank != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun holds the port itself
        return
    port = int(os.environ["MASTER_PORT"])
    try:
        probed("", port)
    except OSError as error:
        raise UserError(
            f"MASTER_PORT: port {port} of {socket.gethostname()} is in use ({error.strerror}), and the processes of this "
            "run were to meet there; set MASTER_PORT to a free one."
        ) from None


def parts(weights: Sequence[int], size: int) -> list[range]:
    """Cut a list into ``size`` stretches of about equal weight, in order; some are empty where there are few items.

    Each item goes where the middle of its weight falls, so that no stretch is heavier than an equal share by more than
    its own heaviest item.
    """
    total, done, place = sum(weights), 0, 0
    starts = [0] * (size + 1)
    for i, weight in enumerate(weights):
        middle = done + weight / 2
        while place < size - 1 and middle >= total * (place + 1) / size:
            place += 1
            starts[place] = i
        done += weight
    for later in range(place + 1, size + 1):
        starts[later] = len(weights)
    return [range(starts[k], starts[k + 1]) for k in range(size)]
