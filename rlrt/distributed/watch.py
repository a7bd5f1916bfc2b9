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
from typing import Any

from rlrt.distributed.rank import EXIT
from rlrt.errors import RankLost, first_line
from rlrt.machine import alive, machine

log = logging.getLogger("rlrt")
BEAT_S = 1.0
"""Seconds between two notes of a rank."""
SILENCE_S = 20.0
"""Seconds without a new note after which a rank on another machine counts as gone, and without an answer of the store after
which its holder does; on this machine the kernel knows at once."""
GRACE_S = 8.0
"""Seconds that the main thread gets to fail by itself and write its files once another rank is gone."""
HURRY_BEATS = 1.5
"""Notes that a rank may miss once its connections are broken and whoever sent a signal will not wait ``SILENCE_S``."""
TELL_S = 10.0
"""Longest wait for a store, a disk or a log that may hang, when a rank says its last words."""


class Watch:
    """Exchange of notes by which each rank tells the others that it runs, and learns which of them do not.

    Every second a thread of each rank writes a note (pid, machine, meetings, failure) to the store of the process group, and
    reads the others'. A call of the store may hang for as long as TCP tries again, where the machine that holds it lost its
    power; so a second thread judges by what the first one read last, and when. Nothing but the first thread touches the store.
    ``meetings`` counts the collectives that a rank has begun: a rank with fewer keeps the others waiting. The states of another
    rank, as its note shows them; of several, the run's error names ``failed`` before ``gone`` before ``late``:

    ========  =========================================================  ====================================================
    state     condition                                                  consequence
    ========  =========================================================  ====================================================
    running   none of those below                                        none
    left      the note is ``left``: the rank ended without a failure     none
    failed    the note has a ``failure``                                 this rank ends
    gone      on this machine: no such process, or a zombie; on another  this rank ends
              one: the note has not changed for ``SILENCE_S``, or for
              ``HURRY_BEATS`` after a collective broke and a signal
              to end came
    late      fewer ``meetings`` than this rank, whose collective has    a late rank on this machine is killed (SIGKILL);
              waited for ``patience_s`` or has timed out                 this rank ends
    no store  the store cannot be read, or has not answered for          this rank ends
              ``SILENCE_S``: rank 0 or torchrun is gone
    ========  =========================================================  ====================================================

    A rank ends in one of two ways: its main thread's collective fails, and ``explained`` turns the error into the cause; or, if
    the main thread has not ended after ``GRACE_S``, the judging thread says the cause and exits with ``EXIT``.

    Args:
        store: store of the process group.
        rank, size: number of this rank, and number of ranks.
        patience_s: longest wait for other ranks, seconds.
        leave: function that ends the process; tests replace it.
        last_words: stores the cause before the judging thread ends the process.
        hurried: True once a signal asked this process to end.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        patience_s: float,
        leave: Callable[[int], None] = os._exit,
        last_words: Callable[[str], None] = lambda sentence: None,
        hurried: Callable[[], bool] = lambda: False,
    ) -> None:
        self.store, self.rank, self.size, self._patience_s, self._leave = store.clone(), rank, size, patience_s, leave
        self._last_words, self._hurried, self._machine = last_words, hurried, machine()
        self._meetings = 0
        self._since: float | None = None
        self._connecting: tuple[float, str] | None = None
        self._broken: float | None = None
        self._notes: dict[int, dict[str, Any]] = {}
        self._changed: dict[int, float] = {}
        self._answered, self._store_broken = time.monotonic(), False
        self._beats, self._failure, self._stopped = 0, "", threading.Event()
        self._explained: BaseException | None = None
        self._begun = self._done = 0
        self._wake, self._rounds = threading.Event(), threading.Condition()
        self._asker = threading.Thread(target=self._ask, daemon=True, name="rlrt-watch-store")
        self._judge = threading.Thread(target=self._run, daemon=True, name="rlrt-watch")

    def start(self) -> None:
        """Start to write notes."""
        self._answered = time.monotonic()
        self._asker.start()
        self._judge.start()

    @property
    def failed(self) -> bool:
        """True if this rank reported a failure to the others."""
        return bool(self._failure)

    def stop(self) -> None:
        """Stop writing notes; the last one says that this rank ended well, unless it failed."""
        self._stopped.set()
        self._wake.set()
        self._asker.join(timeout=TELL_S)

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """Mark a collective, at which all ranks must arrive."""
        self._meetings += 1
        self._since = time.monotonic()
        try:
            yield
        except RuntimeError:
            self._broken = self._broken or time.monotonic()
            raise
        finally:
            self._since = None

    @contextlib.contextmanager
    def connecting(self, limit_s: float, otherwise: str) -> Iterator[None]:
        """Mark the time in which the ranks connect to each other, which may hang; after ``limit_s`` seconds this rank ends with
        ``otherwise``, and without grace, since there is nothing to save yet."""
        self._connecting = (time.monotonic() + limit_s, otherwise)
        try:
            yield
        finally:
            self._connecting = None

    def report(self, error: BaseException) -> None:
        """Tell the other ranks that this one failed."""
        self._failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
        self._refresh(TELL_S)

    def explained(self, error: BaseException) -> BaseException:
        """Return ``error``, or a sentence about the rank that caused it: a collective fails on all ranks when one is gone.

        An error that did not come from a collective is reported to the other ranks.
        """
        if isinstance(error, RankLost) or error is self._explained:
            return error
        self._explained = error
        if not is_of_collective(error):
            self.report(error)
            return error
        self._broken = self._broken or time.monotonic()
        end = time.monotonic() + SILENCE_S + 5
        while time.monotonic() < end:
            self._refresh(BEAT_S)
            lost = self.lost()
            if not lost and "timed out" in str(error).lower():
                lost = self._late_sentence()
                self._kill_late()
            if lost:
                return RankLost(lost)
            time.sleep(0.2)
        return error

    def _ask(self) -> None:
        """The thread that alone speaks to the store, and may hang there."""
        while True:
            stopped = self._stopped.is_set()
            with self._rounds:
                self._begun += 1
            try:
                self._write_note(left=stopped and not self._failure)
                self._read_notes()
                self._answered = time.monotonic()
            except RuntimeError:
                self._store_broken = True
            with self._rounds:
                self._done += 1
                self._rounds.notify_all()
            if stopped:
                return
            self._wake.wait(BEAT_S)
            self._wake.clear()

    def _refresh(self, seconds: float) -> None:
        """Wait until this rank's note is written and the others' are read anew, at most so many seconds: the store may hang."""
        with self._rounds:
            target = self._begun + 1
            self._wake.set()
            self._rounds.wait_for(lambda: self._done >= target or self._store_broken, seconds)

    def _run(self) -> None:
        """The thread that judges by what the other one has read; it never touches the store."""
        lost_since, said = 0.0, False
        while not self._stopped.wait(BEAT_S):
            now, since, connecting = time.monotonic(), self._since, self._connecting
            late = self._late_sentence() if since is not None and now - since > self._patience_s else ""
            stuck = connecting[1] if connecting and now > connecting[0] else ""
            lost = self.lost() or late or stuck
            if not lost:
                lost_since = 0.0
                continue
            lost_since = lost_since or now
            over = now - lost_since > (BEAT_S if connecting else GRACE_S)
            if (over or self._hurried()) and not said:
                said = True
                self._say(lost)
            if over and not self._stopped.is_set():
                if late:  # a rank that is late only because another one is gone ends by itself and writes its files
                    self._kill_late()
                self._leave(EXIT)
                return

    def _say(self, lost: str) -> None:
        """Print, log and store why this rank ends, in a thread: the folder's disk may be that of the machine that is gone."""

        def say() -> None:
            print(f"error: rank {self.rank} of {self.size} ends: {lost}", file=sys.stderr, flush=True)
            log.error("rank %d ends: %s", self.rank, lost)
            try:
                self._last_words(lost)
            except Exception as error:
                log.warning("rank %d could not store why it ends: %s", self.rank, first_line(error))

        saying = threading.Thread(target=say, daemon=True, name="rlrt-last-words")
        saying.start()
        saying.join(TELL_S)

    def _write_note(self, left: bool) -> None:
        self._beats += 1
        note = {
            "beat": self._beats, "pid": os.getpid(), "host": socket.gethostname(), "machine": self._machine,
            "meetings": self._meetings, "failure": self._failure,
        }  # fmt: skip
        self.store.set(f"rlrt/{self.rank}", json.dumps({"left": True} if left else note))

    def _read_notes(self) -> None:
        """Read the other ranks' notes, and remember when each last changed."""
        notes, changed = dict(self._notes), dict(self._changed)
        for other in range(self.size):
            key = f"rlrt/{other}"
            if other == self.rank or not self.store.check([key]):
                continue
            note = json.loads(self.store.get(key))
            if note != notes.get(other):
                notes[other], changed[other] = note, time.monotonic()
        self._changed = changed  # before the notes, whose ranks are looked up here
        self._notes = notes

    def lost(self) -> str:
        """Return a sentence about the ranks that failed or are gone; empty if there are none. It never waits."""
        failed, gone = [], []
        answered, broken, now = self._answered, self._broken, time.monotonic()
        for other, note in sorted(self._notes.items()):
            name = f"rank {other} (pid {note.get('pid')} on {note.get('host')})"
            if note.get("left"):
                continue
            changed = self._changed[other]
            if note["failure"]:
                failed.append(f"{name} failed: {note['failure']}")
            elif note["machine"] == self._machine:
                if not alive(int(note["pid"])):
                    gone.append(f"{name} is gone: it was killed, or its machine took it away")
            elif answered - changed > SILENCE_S:  # as long as the store is silent, it tells nothing about the others
                gone.append(f"{name} gave no sign of life for {SILENCE_S:.0f} s")
            elif broken is not None and self._hurried() and answered - max(changed, broken) > HURRY_BEATS * BEAT_S:
                gone.append(f"{name} is gone: its connections broke, and it gave no sign of life since")
        if failed or gone:
            return "; ".join(failed or gone)
        if self._store_broken:
            return f"{self._holder()}, which holds the rendezvous, is gone"
        silent = now - answered > SILENCE_S
        return (
            f"{self._holder()}, which holds the rendezvous, gave no sign of life for {SILENCE_S:.0f} s"
            if silent
            else ""
        )

    def _holder(self) -> str:
        """Return who holds the store."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return f"torchrun at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        note = self._notes.get(0, {})
        return f"rank 0 (pid {note['pid']} on {note['host']})" if "pid" in note else "rank 0"

    def _late_ranks(self) -> dict[int, dict[str, Any]]:
        """Return the notes of the ranks that have not arrived at this rank's current collective."""
        notes = sorted(self._notes.items())
        return {other: n for other, n in notes if not n.get("left") and n["meetings"] < self._meetings}

    def _kill_late(self) -> None:
        """Kill the late ranks of this machine: the launcher waits for all of its processes."""
        for note in self._late_ranks().values():
            if note["machine"] == self._machine and note["pid"] != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(int(note["pid"]), signal.SIGKILL)

    def _late_sentence(self) -> str:
        """Return a sentence about the ranks that have not arrived at this rank's current collective; empty if all have."""
        names = [f"rank {other} (pid {note['pid']} on {note['host']})" for other, note in self._late_ranks().items()]
        if not names:
            return ""
        return f"{', '.join(names)} kept the others waiting for {self._patience_s:g} s (distributed.patience_s)"


def is_of_collective(error: BaseException) -> bool:
    """True if an error came from a collective."""
    from torch.distributed import DistError

    phrases = ("gloo", "nccl", "connection closed by peer", "connection reset", "timed out waiting", "broken pipe")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in phrases)
    )
