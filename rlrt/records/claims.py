"""Claims: whose folder it is where file locks do not say so, since some file systems do not share them between machines.

A claim is a file ``NAME.N`` beside the lock ``NAME.lock``. It is made exclusively, which every file system decides for all
machines at once, so of two starters one gets it without waiting. It holds a note about its process with a nonce and a beat
that a thread counts up. Whoever finds one looks whether the beat moves (clocks of machines may differ, so no time is compared):
if it does, the other process lives; if not, the finder makes ``NAME.N+1``, by which the other knows that it was replaced. A
process that ends well removes its claim.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import Replaced
from rlrt.machine import PROC, machine, started
from rlrt.records.files import read_json, write_json
from rlrt.records.printable import one_line

BEAT_S = 2.0
"""Seconds between two beats."""
BEATS = 3
"""Beats that are awaited before a process counts as gone."""
LAG_S = 30.0
"""Seconds by which one machine may see another one's change late; awaited besides, unless the process was on this one."""
SLACK = 24
"""Bytes for which a note is padded: a beat is written over the last one, so that its file stays the same one."""


class Moves(Exception):
    """The claim of another process moves; ``note`` is what the process says of itself."""

    def __init__(self, note: dict[str, Any]) -> None:
        super().__init__(str(note))
        self.note = note


def is_gone(note: Mapping[str, Any]) -> bool:
    """True if a note's process was on this machine and is there no more; another process may have got its number since."""
    pid, here = note.get("pid"), note.get("machine") == machine()
    return here and PROC.is_dir() and isinstance(pid, int) and started(pid) != note.get("started")


def file_of(path: Path, number: int) -> Path:
    """Return the file of a claim."""
    return path.with_suffix(f".{number}")


def newest(path: Path) -> int:
    """Return the number of the newest claim; 0 if there is none. The folder is listed, which a cache of names does not hide."""
    with contextlib.suppress(OSError):
        pattern = re.compile(rf"{re.escape(path.name)}\.([1-9][0-9]{{0,8}})")
        return max((int(m[1]) for name in os.listdir(path.parent) if (m := pattern.fullmatch(name))), default=0)
    return 0


def note_of(path: Path) -> dict[str, Any]:
    """Return the note of the newest claim; {} if there is none. Its ``nonce`` and ``beat`` change while its process lives."""
    number = newest(path)
    return read_json(file_of(path, number)) if number else {}


def moving(paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Return the notes of those leases' claims whose process lives, whatever their locks say.

    A process of this machine is looked up. Claims of other machines are watched together until each has beaten, for ``BEATS``
    beats at most; without such claims nothing is waited for.
    """
    notes = {path: note for path in paths if (note := note_of(path))}
    here = {path for path, note in notes.items() if note.get("machine") == machine()}
    alive = {path: notes[path] for path in here if not is_gone(notes[path])}
    silent, end = notes.keys() - here, time.monotonic() + BEATS * BEAT_S
    while silent and time.monotonic() < end:
        time.sleep(BEAT_S / 8)
        now = {path: note_of(path) for path in silent}
        beaten = {path: note for path, note in now.items() if note and sign(note) != sign(notes[path])}
        alive |= beaten
        silent -= beaten.keys()
    return alive


def sign(note: Mapping[str, Any]) -> tuple[Any, Any]:
    """What of a claim changes while its process lives."""
    return note.get("nonce"), note.get("beat")


class Claim:
    """This process's claim.

    Args:
        path: the lease, such as ``FOLDER/lease``.
        number: of the claim; 0 where none could be made (a full disk): the lock alone then counts.
        note: what others read of this process.
    """

    def __init__(self, path: Path, number: int, note: dict[str, Any]) -> None:
        self.path, self.number, self.note = path, number, note
        self._size = len(json.dumps(note)) + SLACK
        self._other: dict[str, Any] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="rlrt-lease")

    def taken_by(self) -> dict[str, Any] | None:
        """Return the note of the process that has replaced this one; None while the claim is this process's."""
        if self.number and self._other is None:
            self._other = self._successor()
        return self._other

    def _successor(self) -> dict[str, Any] | None:
        later, mine = file_of(self.path, self.number + 1), file_of(self.path, self.number)
        if os.path.lexists(later):
            return read_json(later)
        note = read_json(mine)
        if not note and not os.path.lexists(mine):  # a successor that has ended removes both claims, and its note stays
            note = read_json(self.path.with_suffix(".json"))
        return note if isinstance(note.get("nonce"), str) and note["nonce"] != self.note["nonce"] else None

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S) and self.taken_by() is None:
            with contextlib.suppress(OSError):  # a full disk, a folder that was removed: the run itself finds out
                self.note["beat"] += 1
                write_over(file_of(self.path, self.number), self.text())

    def text(self) -> bytes:
        """Return the note, always of one length."""
        return (json.dumps(self.note).ljust(self._size) + "\n").encode()

    def start(self) -> None:
        """Begin to beat."""
        if self.number:
            self._thread.start()

    def release(self) -> None:
        """Stop beating, and remove this claim after those that it replaced, unless another process has replaced this one."""
        self._ended.set()
        if not self.number:
            return
        self._thread.join(timeout=10)
        if self.taken_by() is None:
            for number in range(max(1, self.number - 1000), self.number + 1):
                with contextlib.suppress(OSError):
                    file_of(self.path, number).unlink(missing_ok=True)


HELD: dict[Path, Claim] = {}
"""The claims of this process, by the absolute path of the lease."""


def write_over(file: Path, content: bytes) -> None:
    """Write over a file's first bytes; a file that is not there is not made, and a link is not followed."""
    handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.pwrite(handle, content, 0)
    finally:
        os.close(handle)  # only now another machine is sure to see it


def refuse_replaced(path: Path) -> None:
    """Refuse to go on under a lease of this process that another one has taken over; nothing for a lease that it does not hold.

    Raises:
        Replaced: naming the other process.
    """
    claim = HELD.get(path.absolute())
    other = claim.taken_by() if claim is not None else None
    if other is not None:
        raise Replaced(
            f"{path.parent} was taken over by process {one_line(other.get('pid'), 20)} on {one_line(other.get('host'), 80)}, "
            "which saw no sign of life of this one; this process ends and leaves the folder to that one."
        )


@contextlib.contextmanager
def claimed(path: Path, note: dict[str, Any], lag_s: float | None = None) -> Iterator[None]:
    """Hold a claim while the block runs, with a copy of the note in ``path.json``, which stays.

    Args:
        path: the lease; its lock is held.
        note: about this process.
        lag_s: instead of ``LAG_S``.

    Raises:
        Moves: if another process holds a claim and lives.
    """
    own = os.getpid()
    note = note | {"machine": machine(), "started": started(own), "nonce": secrets.token_hex(8), "beat": 0}
    claim = made(path, note, LAG_S if lag_s is None else lag_s)
    with contextlib.suppress(OSError):  # on a full disk the lock works without its note
        write_json(path.with_suffix(".json"), claim.note)
    claim.start()
    HELD[path.absolute()] = claim
    try:
        yield
    finally:
        del HELD[path.absolute()]
        claim.release()


def made(path: Path, note: dict[str, Any], lag_s: float) -> Claim:
    """Make the next claim, once the process of the newest one is gone.

    Raises:
        Moves: if it lives.
    """
    least = 0
    while True:
        number = max(newest(path), least)
        if number:
            refuse_moving(path, number, lag_s)
        claim = Claim(path, number + 1, note)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(file_of(path, claim.number), flags, 0o666)
        except FileExistsError:  # another starter was quicker
            least = claim.number
            continue
        except OSError:
            return Claim(path, 0, note)
        with open(handle, "wb", buffering=0) as file, contextlib.suppress(OSError):
            file.write(claim.text())
        latest = newest(path)
        if latest <= claim.number:
            return claim
        file_of(path, claim.number).unlink(missing_ok=True)  # what was seen before was old
        least = latest


def refuse_moving(path: Path, number: int, lag_s: float) -> None:
    """Wait until it is clear whether the process of a claim lives.

    Raises:
        Moves: if it does.
    """
    file = file_of(path, number)
    seen = read_json(file)
    here = seen.get("machine") == machine()
    patience = BEATS * BEAT_S + (0.0 if here else lag_s)
    end, told = time.monotonic() + patience, False
    while time.monotonic() < end:
        if is_gone(seen) or not os.path.lexists(file):
            return
        now = read_json(file)  # nothing while it is just being written
        if now and seen and sign(now) != sign(seen):
            raise Moves(now)
        if not told and time.monotonic() > end - patience + 2 * BEAT_S:
            who = f"process {one_line(seen.get('pid'), 20)} on {one_line(seen.get('host'), 80)}"
            print(f"{path.parent}: looking for {patience:.0f} s whether {who} still lives", file=sys.stderr, flush=True)
            told = True
        seen = seen or now
        time.sleep(BEAT_S / 8)
