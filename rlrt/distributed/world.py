"""The ranks of a run and their collectives. A single process is a world of size 1, whose collectives return at once.

Every rank runs the same loop on the same prompts, and does its share of the rollouts, of the scoring and of the update. All
ranks see the same gathered data and therefore decide alike without further messages.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rlrt.distributed.interface import interface_problem, settle_interface
from rlrt.distributed.meeting import LINGER_S, Meeting, c10d, refuse_taken_port
from rlrt.distributed.rank import processes
from rlrt.distributed.watch import BEAT_S, Watch
from rlrt.errors import NotMet, RankLost, UserError

T = TypeVar("T")
ADVICE = "set distributed.interface to the network interface by which the machines reach each other."


class World:
    """The world of a run with one process.

    Attributes:
        rank, size: number of this rank, and number of ranks.
        local_rank: number of this rank on its machine.
    """

    rank = 0
    size = 1
    local_rank = 0

    @property
    def main(self) -> bool:
        """True if this rank writes the run's files and talks to MLflow."""
        return self.rank == 0

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all ranks, in the order of ranks."""
        return list(items)

    def any(self, flag: bool) -> bool:
        """True if the flag is True on any rank."""
        return flag

    def most(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        return number

    def sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """Return the sums over ranks, name by name; a rank may lack a name."""
        return numbers

    def on_main(self, action: Callable[[], T]) -> T:
        """Run ``action`` on rank 0 alone; return its result, or raise its UserError, on all ranks."""
        return action()

    def second_channel(self) -> World:
        """Return a second communicator over the same ranks, so that one thread's collectives do not interleave with
        another's."""
        return self

    def note(self, name: str, text: str) -> None:
        """Leave a text for the other ranks under a name, from any thread, without waiting for them."""

    def notes(self, name: str) -> dict[int, str]:
        """Return the texts that ranks have left under a name so far, by rank; from any thread, without waiting."""
        return {}

    def lost(self) -> str:
        """Return a sentence about ranks that are gone or failed, or ""; from any thread, without waiting."""
        return ""

    def explained(self, error: BaseException) -> BaseException:
        """Return the error to report for ``error``: the failure of another rank, if that is the cause."""
        return error

    def leave(self) -> None:
        """End this rank's part in the run."""


class Several(World):
    """This rank among several (``connect`` makes it). All ranks must call its methods, in the same order."""

    def __init__(self, rank: int, size: int, local_rank: int, group: Any, watch: Watch) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._group, self._watch = group, watch
        self._store = watch.store.clone()

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all ranks, in the order of ranks."""
        with self._watch.meeting():
            gathered: list[Any] = [None] * self.size
            dist.all_gather_object(gathered, list(items), group=self._group)
        return [item for part in gathered for item in part]

    def any(self, flag: bool) -> bool:
        """True if the flag is True on any rank."""
        return any(self.gather([flag]))

    def most(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        return max(self.gather([number]))

    def sum(self, numbers: dict[str, float]) -> dict[str, float]:
        """Return the sums over ranks, name by name; a rank may lack a name."""
        total: dict[str, float] = {}
        for part in self.gather([numbers]):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def on_main(self, action: Callable[[], T]) -> T:
        """Run ``action`` on rank 0 alone; return its result, or raise its UserError, on all ranks."""
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = action()
            except UserError as error:
                outcome[1] = error
        with self._watch.meeting():
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def second_channel(self) -> World:
        """Return a second communicator over the same ranks, so that one thread's collectives do not interleave with
        another's."""
        return Several(self.rank, self.size, self.local_rank, dist.new_group(backend="gloo"), self._watch)

    def note(self, name: str, text: str) -> None:
        """Leave a text for the other ranks under a name, from any thread, without waiting for them."""
        self._store.set(f"rlrt/note/{name}/{self.rank}", text)

    def notes(self, name: str) -> dict[int, str]:
        """Return the texts that ranks have left under a name so far, by rank; from any thread, without waiting."""
        keys = {rank: f"rlrt/note/{name}/{rank}" for rank in range(self.size)}
        return {rank: self._store.get(key).decode() for rank, key in keys.items() if self._store.check([key])}

    def lost(self) -> str:
        """Return a sentence about ranks that are gone or failed, or ""; from any thread, without waiting."""
        return self._watch.lost()

    def explained(self, error: BaseException) -> BaseException:
        """Return the error to report for ``error``: the failure of another rank, if that is the cause."""
        return self._watch.explained(error)

    def leave(self) -> None:
        """End this rank's part in the run, and the process group unless something failed."""
        self._watch.stop()
        succeeded = (
            not self._watch.failed and sys.exc_info()[0] is None
        )  # after a failure the last collective could hang
        if succeeded and dist.is_initialized():  # vLLM destroys the process group itself when it ends
            dist.destroy_process_group()


ALONE = World()
"""The world of a run with one process."""


def connect(
    patience_s: float,
    on_gpu: bool,
    meeting_s: float = 300.0,
    interface: str | None = None,
    stop: Callable[[], bool] = lambda: False,
    last_words: Callable[[str], None] = lambda sentence: None,
) -> World:
    """Connect this process to the other ranks of its run, given by torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, ...).

    Args:
        patience_s: how long a rank may keep the others waiting before the run ends, seconds.
        on_gpu: True if tensors on GPUs will be exchanged, through NCCL.
        meeting_s: how long the ranks wait for each other here, seconds.
        interface: network interface for gloo and NCCL; None: they choose.
        stop: True once a signal asked this process to end.
        last_words: stores why this process ends, where the main thread can do so no more.

    Raises:
        NotMet: if the other ranks cannot be reached, do not come, or cannot connect to each other.
        RankLost: if one of them failed meanwhile.
        UserError: if the port is taken, or a machine lacks the interface.
    """
    size = processes()
    if size == 1:
        return ALONE
    missing = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={size}: several processes need {', '.join(missing)} too; start them with torchrun --standalone "
            "--nproc-per-node=N -m rlrt.run ..., or leave WORLD_SIZE out."
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    refuse_taken_port(rank)
    meeting = Meeting(rank, size, meeting_s, stop)
    store, notes = meeting.meet(interface_problem(interface))
    store.set_timeout(datetime.timedelta(seconds=patience_s))
    settle_interface(interface, notes, rank)
    watch = Watch(store, rank, size, patience_s, last_words=last_words, hurried=stop)
    watch.start()
    stuck = f"{meeting.unconnected()} within {meeting_s:g} s (distributed.meeting_s); {ADVICE}"
    try:
        with watch.connecting(meeting_s, stuck):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=c10d.PrefixStore("default_pg", store),
                rank=rank,
                world_size=size,
                timeout=datetime.timedelta(seconds=patience_s),
            )
            if on_gpu:
                torch.cuda.set_device(local_rank % torch.cuda.device_count())
            group = dist.new_group(backend="gloo")
    except (RuntimeError, ValueError) as error:
        raise unconnected(error, watch, meeting) from None
    return Several(rank, size, local_rank, group, watch)


def unconnected(error: Exception, watch: Watch, meeting: Meeting) -> Exception:
    """Return the error for ranks that met and cannot connect to each other, after the others were told."""
    lost = watch.lost()
    found = NotMet(f"{meeting.unconnected()}: {(str(error).splitlines() or [type(error).__name__])[0]}; {ADVICE}")
    watch.report(found)
    if watch.rank == 0:
        time.sleep(LINGER_S + BEAT_S)  # this rank holds the store in which the others read of it
    watch.stop()
    return RankLost(lost) if lost else found


def parts(weights: Sequence[int], size: int) -> list[range]:
    """Cut a list into ``size`` contiguous parts of about equal weight, in order; some are empty if there are few items.

    Each item goes to the part in which the middle of its weight falls, so that no part is heavier than an equal share by more
    than its own heaviest item.
    """
    total, done, part = sum(weights), 0, 0
    starts = [0] * (size + 1)
    for i, weight in enumerate(weights):
        middle = done + weight / 2
        while part < size - 1 and middle >= total * (part + 1) / size:
            part += 1
            starts[part] = i
        done += weight
    for later in range(part + 1, size + 1):
        starts[later] = len(weights)
    return [range(starts[k], starts[k + 1]) for k in range(size)]
