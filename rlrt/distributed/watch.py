"""Signs of life: a process that dies, fails or keeps the others waiting is named, and the run ends instead of hanging."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlrt.distributed.rank import EXIT
from rlrt.errors import RankLost

log = logging.getLogger("rlrt")
BEAT_S = 1.0
"""Seconds between two signs of life."""
SILENCE_S = 20.0
"""Seconds without a sign of life after which a process on another machine counts as gone; here the kernel knows at once."""
GRACE_S = 8.0
"""Seconds that the main thread gets to fail by itself, with everything it has to write, once another process is gone."""
STORE_GONE = "the process that holds the rendezvous (rank 0, or torchrun) is gone"


class Watch:
    """What one process tells the others about itself, and knows about them.

    Each writes a note (pid, host, meetings, failure) to the store of the process group every second, from a thread.
    ``meetings`` counts the moments at which all must come together: whoever has fewer keeps the others waiting.

    Args:
        store: of the process group.
        rank, size: of this process.
        patience_s: how long others may be waited for.
        leave: ends the process; for tests.
    """

    def __init__(
        self, store: Any, rank: int, size: int, patience_s: float, leave: Callable[[int], None] = os._exit
    ) -> None:
        self._store, self.rank, self.size, self._patience_s, self._leave = store.clone(), rank, size, patience_s, leave
        self._meetings = 0
        self._since: float | None = None
        self._notes: dict[int, dict[str, Any]] = {}
        self._changed: dict[int, float] = {}
        self._beats, self._failure, self._over = 0, "", threading.Event()
        self._gone_since: float | None = None
        self._explained: BaseException | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="rlrt-watch")

    def start(self) -> None:
        """Begin to give signs of life."""
        self._tell()
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether this process told the others of a failure."""
        return bool(self._failure)

    def stop(self) -> None:
        """This process leaves; in peace, unless it failed."""
        self._over.set()
        self._thread.join(timeout=5)
        if not self._failure:
            with contextlib.suppress(RuntimeError):
                self._store.set(f"rlrt/{self.rank}", json.dumps({"left": True}))

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """A moment at which all processes come together."""
        self._meetings += 1
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def explained(self, error: BaseException) -> BaseException:
        """``error``, or a sentence about the process that caused it: collectives fail in all when one is gone.

        An error of this process's own is told to the others.
        """
        if isinstance(error, RankLost) or error is self._explained:
            return error
        self._explained = error
        if not is_of_collective(error):
            self._failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
            with contextlib.suppress(RuntimeError):
                self._tell()
            return error
        end = time.monotonic() + SILENCE_S + 5
        while time.monotonic() < end:
            lost = self._lost()
            if not lost and "timed out" in str(error).lower():
                lost = self._behind()
                self._end_late()
            if lost:
                return RankLost(lost)
            time.sleep(0.2)
        return error

    def _run(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(RuntimeError):  # the store is gone: ``_lost`` says so
                self._tell()
            since = self._since
            waited = since is not None and time.monotonic() - since > self._patience_s
            late = self._behind() if waited else ""
            lost = self._lost() or late
            if not lost:
                self._gone_since = None
                continue
            self._gone_since = self._gone_since or time.monotonic()
            if time.monotonic() - self._gone_since > GRACE_S and not self._over.is_set():
                if late:  # whoever is only behind because another one is gone ends by itself, with what it has to write
                    self._end_late()
                log.error("rank %d ends: %s", self.rank, lost)
                print(f"error: rank {self.rank} of {self.size} ends: {lost}", file=sys.stderr, flush=True)
                self._leave(EXIT)
                return

    def _tell(self) -> None:
        with self._lock:
            self._beats += 1
            note = {
                "beat": self._beats, "pid": os.getpid(), "host": socket.gethostname(), "meetings": self._meetings,
                "failure": self._failure,
            }  # fmt: skip
            self._store.set(f"rlrt/{self.rank}", json.dumps(note))

    def _read(self) -> None:
        """The others' notes, and when each last changed."""
        with self._lock:
            for other in range(self.size):
                key = f"rlrt/{other}"
                if other == self.rank or not self._store.check([key]):
                    continue
                note = json.loads(self._store.get(key))
                if note != self._notes.get(other):
                    self._notes[other], self._changed[other] = note, time.monotonic()

    def _lost(self) -> str:
        """A sentence about the processes that failed or are gone; empty where all are there."""
        try:
            self._read()
            rest = ""
        except RuntimeError:
            rest = STORE_GONE
        failed, gone = [], []
        for other, note in sorted(self._notes.items()):
            name = f"rank {other} (pid {note.get('pid')} on {note.get('host')})"
            if note.get("left"):
                continue
            if note["failure"]:
                failed.append(f"{name} failed: {note['failure']}")
            elif note["host"] == socket.gethostname():
                if not alive(int(note["pid"])):
                    gone.append(f"{name} is gone: it was killed, or its machine took it away")
            elif time.monotonic() - self._changed[other] > SILENCE_S:
                gone.append(f"{name} gave no sign of life for {SILENCE_S:.0f} s")
        return "; ".join(failed or gone) or rest

    def _late(self) -> dict[int, dict[str, Any]]:
        """The notes of the processes that have not come to the meeting this one is at."""
        notes = sorted(self._notes.items())
        return {other: n for other, n in notes if not n.get("left") and n["meetings"] < self._meetings}

    def _end_late(self) -> None:
        """End those of them that are on this machine: whoever started the run waits for all of its processes."""
        for note in self._late().values():
            if note["host"] == socket.gethostname() and note["pid"] != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(int(note["pid"]), signal.SIGKILL)

    def _behind(self) -> str:
        """A sentence about the processes that have not come to the meeting this one is at; empty where all have."""
        names = [f"rank {other} (pid {note['pid']} on {note['host']})" for other, note in self._late().items()]
        if not names:
            return ""
        return f"{', '.join(names)} kept the others waiting for {self._patience_s:g} s (distributed.patience_s)"


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and was not yet collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def is_of_collective(error: BaseException) -> bool:
    """Whether an error came out of an exchange between processes."""
    from torch.distributed import DistError

    words = ("gloo", "nccl", "connection closed by peer", "connection reset", "timed out waiting", "broken pipe")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )
