"""How the ranks of a run find each other at its start: who has come, who has not, and what each says of itself."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from rlrt.distributed.addresses import resolved_addresses, route_to
from rlrt.distributed.interface import GLOO
from rlrt.distributed.ports import probed
from rlrt.distributed.rank import HOSTS
from rlrt.errors import NotMet, UserError
from rlrt.machine import machine

log = logging.getLogger("rlrt")
c10d: Any = dist  # whose stores are public, and not listed for type checkers
POLL_S = 0.2
"""Seconds between two looks for ranks that have not come."""
TELL_S = 30.0
"""Seconds after which the log names the ranks that have not come."""
TRY_S = 5.0
"""Longest attempt to connect to the rendezvous, seconds."""
ASKED_S = 3.0
"""Seconds that the others get once a signal asked this process to end: those that got it too come, and all end in order; srun
kills those that wait in vain after SLURM's KillWait."""
LINGER_S = 1.0
"""Seconds for which rank 0 keeps a rendezvous that failed, so that the others read why."""
ARRIVED, MET = "rlrt/arrived/{}", "rlrt/met"
"""Keys of the store: what a rank says of itself, and what rank 0 says to all."""


@dataclass
class Meeting:
    """One rank's part in the meeting.

    Args:
        rank, size: number of this rank, and number of ranks.
        limit_s: longest wait for the others, seconds.
        stop: True once a signal asked this process to end.
    """

    rank: int
    size: int
    limit_s: float
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.address, self.port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._begin, self._told = time.monotonic(), False
        self._asked: float | None = None

    @property
    def prefix(self) -> str:
        """Prefix of the run's keys in the store: torchrun keeps its store when it starts the ranks again."""
        return f"rlrt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    @property
    def place(self) -> str:
        """The rendezvous, for a message."""
        return f"{self.address}:{self.port} (MASTER_ADDR:MASTER_PORT)"

    def meet(self, problem: str = "") -> tuple[Any, dict[int, dict[str, Any]]]:
        """Wait until all ranks have come; return the store, and what each rank says of itself, by rank.

        Args:
            problem: what this rank cannot do; all ranks then raise it.

        Raises:
            NotMet: naming the ranks that have not come, where ``limit_s`` is over, or a signal to end came.
            UserError: on all ranks, if one of them has a problem.
        """
        store = c10d.PrefixStore(self.prefix, self._store())
        own = {
            "pid": os.getpid(), "host": socket.gethostname(), "machine": machine(), "address": route_to(self.address),
            "problem": problem,
        }  # fmt: skip
        try:
            store.set(ARRIVED.format(self.rank), json.dumps(own))
            notes = self._gathered(store) if self.rank == 0 else self._told_by_main(store)
        except RuntimeError as error:
            raise NotMet(f"{self._beginning()}: rank 0, which holds it, is gone ({_first(error)}); {where()}") from None
        if problems := [
            f"rank {r} on {note['host']}: {note['problem']}" for r, note in notes.items() if note["problem"]
        ]:
            if self.rank == 0:
                time.sleep(LINGER_S)
            raise UserError("; ".join(problems))
        return store, notes

    def _store(self) -> Any:
        """Return a client of the store; rank 0 holds the store, unless torchrun does."""
        options: dict[str, Any] = {"timeout": datetime.timedelta(seconds=self.limit_s), "wait_for_workers": False}
        if self.rank == 0 and not held_by_torchrun():
            with self._failing():
                return c10d.TCPStore("127.0.0.1", self.port, is_master=True, multi_tenant=True, **options)
        while reason := self._unreachable():
            self._check(f"{self.address}:{self.port} cannot be reached from {socket.gethostname()}: {reason}")
            time.sleep(POLL_S)
        with self._failing():
            return c10d.TCPStore(self.address, self.port, is_master=False, **options)

    def _unreachable(self) -> str:
        """Return why the rendezvous cannot be reached now; "" if it can be."""
        try:
            socket.create_connection((self.address, self.port), timeout=TRY_S).close()
        except (OSError, UnicodeError) as error:
            return _first(error)
        return ""

    def _gathered(self, store: Any) -> dict[int, dict[str, Any]]:
        """Rank 0: wait for what each rank says of itself, and tell it to all."""
        notes: dict[int, dict[str, Any]] = {}
        try:
            while True:
                for rank in range(self.size):
                    if rank not in notes and store.check([ARRIVED.format(rank)]):
                        notes[rank] = json.loads(store.get(ARRIVED.format(rank)))
                if len(notes) == self.size:
                    break
                missing = [rank for rank in range(self.size) if rank not in notes]
                come = ", ".join(f"rank {rank} ({note['host']})" for rank, note in sorted(notes.items()))
                self._check(f"not yet there: {named(missing, self.size)}; there: {come or 'none'}")
                time.sleep(POLL_S)
        except NotMet as error:
            with contextlib.suppress(RuntimeError):
                store.set(MET, json.dumps({"failed": str(error)}))
            time.sleep(LINGER_S)
            raise
        notes = dict(sorted(notes.items()))
        store.set(MET, json.dumps({"notes": list(notes.values())}))
        return notes

    def _told_by_main(self, store: Any) -> dict[int, dict[str, Any]]:
        """Every other rank: wait for what rank 0 says."""
        while not store.check([MET]):
            self._check("rank 0 still waits for other ranks", TRY_S)  # rank 0 knows better who is missing
            time.sleep(POLL_S)
        said = json.loads(store.get(MET))
        if "failed" in said:
            raise NotMet(said["failed"])
        return dict(enumerate(said["notes"]))

    def _check(self, state: str, more_s: float = 0.0) -> None:
        """Note a state in the log once it has lasted for ``TELL_S``; raise it when the time is over or a signal came."""
        waited = time.monotonic() - self._begin
        if self._asked is None and self.stop():
            self._asked = waited
        if self._asked is not None and waited > self._asked + ASKED_S:
            raise NotMet(f"{self._beginning()}: a signal to end came after {self._asked:.0f} s, and {state}; {where()}")
        if waited > self.limit_s + more_s:
            raise NotMet(f"{self._beginning()} within {self.limit_s:g} s (distributed.meeting_s): {state}; {where()}")
        if waited > TELL_S and not self._told:
            self._told = True
            log.warning("after %.0f s at %s: %s; %s", waited, self.place, state, where())

    def unconnected(self) -> str:
        """Return the beginning of a message about ranks that met here and cannot connect to each other."""
        name = socket.gethostname()
        bound = os.environ.get(GLOO) or ", ".join(dict.fromkeys(resolved_addresses(name))) or "no address"
        return (
            f"rank {self.rank} of {self.size} met the others at {self.place}, and could not connect to them all from {name} "
            f"({bound})"
        )

    def _beginning(self) -> str:
        return f"rank {self.rank} of {self.size} could not meet the others at {self.place}"

    @contextlib.contextmanager
    def _failing(self) -> Any:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise NotMet(f"{self._beginning()}: {_first(error)}; {where()}") from None


def held_by_torchrun() -> bool:
    """True if torchrun holds the store, and no rank does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def named(ranks: Collection[int], size: int) -> str:
    """Return ranks by number, with the hosts on which they were to start, where that is known."""
    hosts = [host for host in os.environ.get(HOSTS, "").split(",") if host]
    each = size // len(hosts) if hosts and size % len(hosts) == 0 else 0
    names = [f"rank {rank} (on {hosts[rank // each]})" if each else f"rank {rank}" for rank in ranks]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def where() -> str:
    """Return where the cause of a rank's absence may stand."""
    if folder := os.environ.get("SUBMITIT_FOLDER"):
        return f"see {folder}, where SLURM and each task say what went wrong, and log.rank*.txt of the run."
    return "are all of them started, and can this machine reach that one?"


def refuse_taken_port(rank: int) -> None:
    """Refuse a rendezvous port that another program uses: the ranks would wait for each other in vain.

    Raises:
        UserError: naming the port.
    """
    if rank != 0 or held_by_torchrun():
        return
    port = int(os.environ["MASTER_PORT"])
    try:
        probed("", port)
    except OSError as error:
        raise UserError(
            f"MASTER_PORT: port {port} of {socket.gethostname()} is in use ({error.strerror}), and the processes of this "
            "run were to meet there; set MASTER_PORT to a free one."
        ) from None


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
