"""A run's records: JSON lines in the run's folder, complete whatever happens to a tracking server."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from rlrt.errors import UserError
from rlrt.records.files import Unreadable, opened, parsed_json
from rlrt.records.secrets import without_known

LARGEST = 1_000_000_000
"""Bytes of a record that is read as a whole."""
NOT_FINITE = ("nan", "inf", "-inf")
"""How a record holds a number that is none."""
LONGEST = 64_000_000
"""Bytes of a line: sixteen rollouts of 20,000 tokens, with their values, have fewer."""

log = logging.getLogger("rlrt")


def _plain(value: Any) -> Any:
    """Replace NaN and infinities by strings, so that every line is strict JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


class JsonLines:
    """An append-only file of JSON objects that each carry a ``step``. What else it holds is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, objects: list[dict[str, Any]]) -> None:
        """Append the objects, one per line, with a single write; a link is not followed."""
        text = "".join(json.dumps(_plain(o), ensure_ascii=False, allow_nan=False) + "\n" for o in objects)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(self.path, flags, 0o666), "a", encoding="utf-8") as file:
            file.write(without_known(text))

    def sync(self) -> None:
        """Flush the file to disk (fsync)."""
        if self.path.exists():
            with self.path.open("a") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return the objects of all complete lines; [] if there is no file.

        Raises:
            Unreadable: for what is no regular file, or has more than ``LARGEST`` bytes.
        """
        self.check()
        return list(objects_of(self._lines()))

    def check(self) -> None:
        """Refuse a file that ``read`` would refuse, without reading it.

        Raises:
            Unreadable: naming it.
        """
        try:
            with opened(self.path) as handle:
                size = os.fstat(handle.fileno()).st_size
        except FileNotFoundError:
            return
        if size > LARGEST:
            raise Unreadable(f"{self.path} cannot be read: expected at most {LARGEST} bytes, found {size}.")

    def last(self, most: int) -> list[dict[str, Any]]:
        """Return the objects of the last complete lines, oldest first: at most ``most`` bytes at the file's end are read.

        Raises:
            Unreadable: for what is no regular file.
        """
        try:
            with opened(self.path) as handle:
                handle.seek(max(0, os.fstat(handle.fileno()).st_size - most))
                return list(objects_of(handle.read(most).split(b"\n")))
        except FileNotFoundError:
            return []

    def _lines(self) -> Iterator[bytes]:
        try:
            handle = opened(self.path)
        except FileNotFoundError:
            return
        with handle:
            yield from lines_of(handle)

    def cut_after(self, step: int) -> None:
        """Remove the lines of later steps, before the run resumes from ``step``; and lines that cannot be read, with a warning.

        Raises:
            UserError: for what is no regular file: the run could not write its record there.
        """
        work, lost = self.path.with_suffix(".tmp"), 0
        work.unlink(missing_ok=True)
        try:
            with work.open("xb") as file:
                for line in self._lines():
                    value = object_of(line)
                    lost += value is None and line.strip() != b"" and line.endswith(b"\n")
                    if value is not None and value["step"] <= step:
                        file.write(line.rstrip(b"\n") + b"\n")
        except Unreadable as error:
            work.unlink(missing_ok=True)
            raise UserError(f"{str(error).removesuffix('.')}; remove it, or give another folder.") from None
        work.replace(self.path)
        if lost:
            log.warning("%s: %d lines that could not be read were left out", self.path, lost)


def lines_of(handle: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is longer than ``LONGEST`` bytes nothing is kept in memory, and it is left out."""
    while line := handle.readline(LONGEST + 1):
        if len(line) <= LONGEST:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(LONGEST + 1)


def objects_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the objects of lines; other lines are passed over."""
    return (value for line in lines if (value := object_of(line)) is not None)


def object_of(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line; None for a partial line, and for anything but an object with a whole number as ``step``."""
    try:
        value = parsed_json(line.decode("utf-8", "replace"))
    except ValueError:
        return None
    step = value.get("step") if isinstance(value, dict) else None
    return value if isinstance(step, int) and not isinstance(step, bool) else None


def numbers_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the finite numbers of a record: its step and its metrics (NaN and infinities are stored as texts)."""
    return {k: v for k, v in record.items() if is_number(v)}


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite number that is no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
