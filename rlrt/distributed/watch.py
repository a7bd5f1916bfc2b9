"""Liveness checks between ranks: a rank that dies, fails or keeps the others waiting is named, and the run ends instead of
hanging."""

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
"""Seconds between two notes of a rank."""
SILENCE_S = 20.0
"""Seconds without a new note after which a rank on another machine counts as gone; on this machine the kernel knows at once."""
GRACE_S = 8.0
"""Seconds that the main thread gets to fail by itself and write its files once another rank is gone."""
STORE_GONE = "the process that holds the rendezvous (rank 0, or torchrun) is gone"


class Watch:
    """Exchange of notes by which each rank tells the others that it runs, and learns which of them do not.

    Every second a thread of each rank writes a note (pid, host, meetings, failure) to the store of the process group.
    ``meetings`` counts the collectives that a rank has begun: a rank with fewer keeps the others waiting. The states of another
    rank, as its note shows them; of several, the run's error names ``failed`` before ``gone`` before ``late``:

    ========  =========================================================  ====================================================
    state     condition                                                  consequence
    ========  =========================================================  ====================================================
    running   none of those below                                        none
    left      the note is ``left``: the rank ended without a failure     none
    failed    the note has a ``failure``                                 this rank ends
    gone      on this host: no such process, or a zombie; on another     this rank ends
              host: the note has not changed for ``SILENCE_S``
    late      fewer ``meetings`` than this rank, whose collective has    a late rank on this host is killed (SIGKILL); this
              waited for ``patience_s`` or has timed out                 rank ends
    no store  the store cannot be read: rank 0 or torchrun is gone       this rank ends
    ========  =========================================================  ====================================================

    A rank ends in one of two ways: its main thread's collective fails, and ``explained`` turns the error into the cause; or, if
    the main thread has not ended after ``GRACE_S``, the watching thread prints the cause and exits with ``EXIT``.

    Args:
        store: store of the process group.
        rank, size: number of this rank, and number of ranks.
        patience_s: longest wait for other ranks, seconds.
        leave: function that ends the process; tests replace it.
    """

    def __init__(
        self, store: Any, rank: int, size: int, patience_s: float, leave: Callable[[int], None] = os._exit
    ) -> None:
        self.store, self.rank, self.size, self._patience_s, self._leave = store.clone(), rank, size, patience_s, leave
        self._meetings = 0
        self._since: float | None = None
        self._notes: dict[int, dict[str, Any]] = {}
        self._changed: dict[int, float] = {}
        self._beats, self._failure, self._stopped = 0, "", threading.Event()
        self._gone_since: float | None = None
        self._explained: BaseException | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="rlrt-watch")

    def start(self) -> None:
        """Start to write notes."""
        self._write_note()
        self._thread.start()

    @property
    def failed(self) -> bool:
        """True if this rank reported a failure to the others."""
        return bool(self._failure)

    def stop(self) -> None:
        """Stop writing notes; write a last note that this rank ended well, unless it failed."""
        self._stopped.set()
        self._thread.join(timeout=5)
        if not self._failure:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"rlrt/{self.rank}", json.dumps({"left": True}))

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """Mark a collective, at which all ranks must arrive."""
        self._meetings += 1
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def explained(self, error: BaseException) -> BaseException:
        """Return ``error``, or a sentence about the rank that caused it: a collective fails on all ranks when one is gone.

        An error that did not come from a collective is reported to the other ranks.
        """
        if isinstance(error, RankLost) or error is self._explained:
            return error
        self._explained = error
        if not is_of_collective(error):
            self._failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
            with contextlib.suppress(RuntimeError):
                self._write_note()
            return error
        end = time.monotonic() + SILENCE_S + 5
        while time.monotonic() < end:
            lost = self.lost()
            if not lost and "timed out" in str(error).lower():
                lost = self._late_sentence()
                self._kill_late()
            if lost:
                return RankLost(lost)
            time.sleep(0.2)
        return error

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_S):
            with contextlib.suppress(RuntimeError):  # the store is gone, which ``lost`` reports
                self._write_note()
            since = self._since
            waited = since is not None and time.monotonic() - since > self._patience_s
            late = self._late_sentence() if waited else ""
            lost = self.lost() or late
            if not lost:
                self._gone_since = None
                continue
            self._gone_since = self._gone_since or time.monotonic()
            if time.monotonic() - self._gone_since > GRACE_S and not self._stopped.is_set():
                if late:  # a rank that is late only because another one is gone ends by itself and writes its files
                    self._kill_late()
                log.error("rank %d ends: %s", self.rank, lost)
                print(f"error: rank {self.rank} of {self.size} ends: {lost}", file=sys.stderr, flush=True)
                self._leave(EXIT)
                return

    def _write_note(self) -> None:
        with self._lock:
            self._beats += 1
            note = {
                "beat": self._beats, "pid": os.getpid(), "host": socket.gethostname(), "meetings": self._meetings,
                "failure": self._failure,
            }  # fmt: skip
            self.store.set(f"rlrt/{self.rank}", json.dumps(note))

    def _read_notes(self) -> None:
        """Read the other ranks' notes, and remember when each last changed."""
        with self._lock:
            for other in range(self.size):
                key = f"rlrt/{other}"
                if other == self.rank or not self.store.check([key]):
                    continue
                note = json.loads(self.store.get(key))
                if note != self._notes.get(other):
                    self._notes[other], self._changed[other] = note, time.monotonic()

    def lost(self) -> str:
        """Return a sentence about the ranks that failed or are gone; empty if there are none."""
        try:
            self._read_notes()
            store_error = ""
        except RuntimeError:
            store_error = STORE_GONE
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
        return "; ".join(failed or gone) or store_error

    def _late_ranks(self) -> dict[int, dict[str, Any]]:
        """Return the notes of the ranks that have not arrived at this rank's current collective."""
        notes = sorted(self._notes.items())
        return {other: n for other, n in notes if not n.get("left") and n["meetings"] < self._meetings}

    def _kill_late(self) -> None:
        """Kill the late ranks of this machine: the launcher waits for all of its processes."""
        for note in self._late_ranks().values():
            if note["host"] == socket.gethostname() and note["pid"] != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(int(note["pid"]), signal.SIGKILL)

    def _late_sentence(self) -> str:
        """Return a sentence about the ranks that have not arrived at this rank's current collective; empty if all have."""
        names = [f"rank {other} (pid {note['pid']} on {note['host']})" for other, note in self._late_ranks().items()]
        if not names:
            return ""
        return f"{', '.join(names)} kept the others waiting for {self._patience_s:g} s (distributed.patience_s)"


def alive(pid: int) -> bool:
    """True if a process of this machine runs; False for a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def is_of_collective(error: BaseException) -> bool:
    """True if an error came from a collective."""
    from torch.distributed import DistError

    phrases = ("gloo", "nccl", "connection closed by peer", "connection reset", "timed out waiting", "broken pipe")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in phrases)
    )
