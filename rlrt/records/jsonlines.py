"""A run's records: JSON lines in the run's folder, complete whatever happens to a tracking server."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from rlrt.records.secrets import without_known


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
    """An append-only file of JSON objects that each carry a ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, objects: list[dict[str, Any]]) -> None:
        """Append the objects, one per line, with a single write."""
        text = "".join(json.dumps(_plain(o), ensure_ascii=False, allow_nan=False) + "\n" for o in objects)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(without_known(text))

    def sync(self) -> None:
        """Flush the file to disk (fsync)."""
        if self.path.exists():
            with self.path.open("a") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Return the objects of all complete lines; a partial last line is ignored."""
        objects = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    objects.append(json.loads(line))
                except ValueError:
                    continue
        return objects

    def cut_after(self, step: int) -> None:
        """Remove the lines of later steps, before the run resumes from ``step``."""
        remaining = [o for o in self.read() if o["step"] <= step]
        work = self.path.with_suffix(".tmp")
        work.write_text("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in remaining), encoding="utf-8")
        work.replace(self.path)
