"""Two or more sides of a comparison, each a process of its own, that take turns step by step."""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.case import Case

ROOT = Path(__file__).parents[2]


class Side:
    """A worker that runs one step when asked.

    Args:
        module: ``ours`` or ``theirs``.
        case: the work.
        method: of the config group.
        overrides: more, for our side.
    """

    def __init__(self, module: str, case: Case, method: str, overrides: Sequence[str] = ()) -> None:
        spec = {"case": dataclasses.asdict(case), "method": method, "overrides": list(overrides)}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.speed.{module}", json.dumps(spec)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._read("ready")

    def _read(self, start: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        self._errors.seek(0)
        raise RuntimeError(f"a side of the benchmark ended early: {self._process.args}\n{self._errors.read()[-2000:]}")

    def step(self) -> dict[str, Any]:
        """One step; its figures."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return json.loads(self._read("{"))

    def end(self) -> None:
        """End the worker."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


@dataclass(frozen=True)
class Figures:
    """One side over the repetitions.

    Attributes:
        seconds: of a step, the median.
        length: tokens of a response, the mean.
        no_signal: share of groups without signal, the mean.
        peak: bytes of memory that the worker held at most.
        phases: seconds of a step's parts, medians; of our side alone.
        skipped: share of rollouts that the update left out, since their gradient is 0, the mean; of our side alone.
    """

    seconds: float
    length: float
    no_signal: float
    peak: float
    phases: dict[str, float]
    skipped: float


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def interleaved(sides: Sequence[Side], repetitions: int, warm_up: int) -> list[Figures]:
    """Each side's figures; a repetition is one step of every side, one after the other."""
    seen: list[list[dict[str, Any]]] = [[] for _ in sides]
    try:
        for repetition in range(warm_up + repetitions):
            for side, kept in zip(sides, seen, strict=True):
                figures = side.step()
                if repetition >= warm_up:
                    kept.append(figures)
    finally:
        for side in sides:
            side.end()

    def middle(kept: list[dict[str, Any]]) -> Figures:
        phases = {name: statistics.median(k["phases"][name] for k in kept) for name in kept[0].get("phases", {})}
        mean = {name: statistics.mean(k.get(name, 0.0) for k in kept) for name in ("length", "no_signal", "skipped")}
        peak = max(k["peak"] for k in kept)
        seconds = statistics.median(k["seconds"] for k in kept)
        return Figures(seconds, mean["length"], mean["no_signal"], peak, phases, mean["skipped"])

    return [middle(kept) for kept in seen]
