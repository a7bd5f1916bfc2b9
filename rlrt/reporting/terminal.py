"""Terminal output: a run's progress line, bars of what takes long, tables, all plain text without colour."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TextIO

from rlrt.records.jsonlines import NOT_FINITE, is_number
from rlrt.records.printable import one_line, printable

WIDTH = 80
SAMPLED = (
    ("reward", "reward/mean", ".3f"),
    ("length", "rollout/length_mean", ".1f"),
    ("entropy", "policy/entropy", ".3f"),
)
GIVEN = (("loss", "policy/loss", ".3f"), ("length", "rollout/length_mean", ".1f"))
"""What the progress line shows of a step: label, metric, format; the second where the responses were given and not sampled,
since a reference solution's reward is always the same."""
REDRAWN_S, PRINTED_S = 0.1, 5.0
"""Seconds between two lines of a bar: in a terminal, and without one."""
BAR = 20
"""Characters of a bar."""
LONGEST_TEXT = 600
"""Characters of a problem or a response that are printed."""


class Progress:
    """A progress line that is redrawn in a terminal; without a terminal it is printed at most every 5 seconds."""

    def __init__(self, steps: int, out: TextIO | None = None) -> None:
        self._steps, self._out = steps, out or sys.stdout
        self._live, self._last, self._begin = self._out.isatty(), 0.0, time.monotonic()
        self._first: int | None = None

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the run's progress; an evaluation always gets its own line."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._begin = step, now
        done = step - self._first
        remaining_s = (now - self._begin) / done * (self._steps - step) if done else None
        parts = [f"step {step:>{len(str(self._steps))}}/{self._steps}"]
        for label, name, form in SAMPLED if "policy/entropy" in metrics else GIVEN:
            if name in metrics:
                parts.append(f"{label} {metrics[name]:{form}}")
        if remaining_s is not None:
            parts.append(f"{remaining_s:.0f} s left")
        line = "  ".join(parts)[: WIDTH - 1]
        evaluated = next((n for n in metrics if n.startswith("eval/avg_at_")), None)
        if self._live:
            self._out.write("\r" + line.ljust(WIDTH - 1))
            if evaluated:
                self._out.write("\n")
        elif evaluated or now - self._last > 5 or step == self._steps:
            self._out.write(line + "\n")
            self._last = now
        if evaluated:
            k = evaluated.rsplit("_", 1)[1]
            self._out.write(
                f"      held out: greedy {metrics['eval/greedy']:.3f}  avg@{k} {metrics[evaluated]:.3f}  "
                f"pass@{k} {metrics[f'eval/pass_at_{k}']:.3f}\n"
            )
        self._out.flush()

    def end(self) -> None:
        """Move past the progress line."""
        if self._live:
            self._out.write("\n")
            self._out.flush()


class Bar:
    """How many of how many are done, and the time left: a line that is redrawn in a terminal and erased at its end; without a
    terminal it is printed every 5 seconds, so what takes less prints nothing.

    Args:
        name: what is being done.
        total: how many there are; None: that is not known.
        unit: what is counted.
        each: how many calls of ``one`` make one of them.
        form: writes a number of them.
        out: where the line goes; standard output by default.
    """

    def __init__(
        self,
        name: str,
        total: float | None,
        unit: str = "problems",
        each: int = 1,
        form: Callable[[float], str] = lambda done: str(int(done)),
        out: TextIO | None = None,
    ) -> None:
        self._name, self._total, self._unit, self._each, self._form = one_line(name, 40), total, unit, each, form
        self._out = out or sys.stdout
        self._live, self._calls, self._drawn = self._out.isatty(), 0, False
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._drawn:
            self._out.write("\r" + " " * (WIDTH - 1) + "\r")
            self._out.flush()

    def one(self) -> None:
        """Count one call more."""
        self._calls += 1
        self.reach(self._calls / self._each)

    def reach(self, done: float) -> None:
        """Show how many are done, if the line is due."""
        now = time.monotonic()
        if now - self._last < (REDRAWN_S if self._live else PRINTED_S):
            return
        self._last = now
        line = self._line(done, now - self._begin)
        self._out.write("\r" + line.ljust(WIDTH - 1) if self._live else line + "\n")
        self._out.flush()
        self._drawn = self._live

    def _line(self, done: float, took_s: float) -> str:
        if not self._total:
            return f"{self._name}  {self._form(done)} {self._unit}".rstrip()[: WIDTH - 1]
        share = min(1.0, done / self._total)
        left = f"  {duration(took_s / share * (1 - share))} left" if share > 0 else ""
        bar = "#" * round(share * BAR) + "." * (BAR - round(share * BAR))
        counts = f"{self._form(done)}/{self._form(self._total)} {self._unit}".rstrip()
        return f"{self._name}  [{bar}]  {counts}{left}"[: WIDTH - 1]


def say(text: str) -> None:
    """Print a text in which no character does anything to the terminal; the one way for what lies in somebody's folder."""
    print(printable(text), flush=True)


def duration(seconds: float) -> str:
    """Format seconds as 42s, 3m05s or 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align rows of text in columns: the first ``left`` columns left, the others right; the first row is the heading."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * w for w in widths).rstrip())
    return "\n".join(lines)


def before_after(first: Mapping[str, Any], last: Mapping[str, Any], samples: int) -> str:
    """Format the closing table: held-out metrics before and after training."""
    rows = [["held out", "before", "after"]]
    families = (
        [(f"families of {samples}", "eval/distinct_families", ".2f")] if "eval/distinct_families" in first else []
    )
    for label, name, form in (
        ("greedy", "eval/greedy", ".3f"),
        (f"avg@{samples}", f"eval/avg_at_{samples}", ".3f"),
        (f"pass@{samples}", f"eval/pass_at_{samples}", ".3f"),
        (f"distinct correct of {samples}", "eval/distinct_correct", ".2f"),
        *families,
        ("entropy (nats/token)", "eval/entropy", ".3f"),
        ("length (tokens)", "eval/length_mean", ".1f"),
        ("truncated share", "eval/truncated_share", ".3f"),
    ):
        cells = [
            f"{float(m[name]):{form}}" if is_number(m.get(name)) or m.get(name) in NOT_FINITE else "-"
            for m in (first, last)
        ]
        rows.append([label, *cells])
    return table(rows)


def phases(records: Sequence[Mapping[str, Any]]) -> str:
    """Format the mean seconds per step of every phase (``time/..._s``)."""
    names = sorted({n for r in records for n in r if n.startswith("time/") and n.endswith("_s")})
    rows = [["phase", "s per step"]]
    for name in names:
        values = [r[name] for r in records if is_number(r.get(name))]
        per = sum(values) / max(1, len([r for r in records if r["step"] > 0]))
        rows.append([name.removeprefix("time/").removesuffix("_s"), f"{per:.3f}"])
    return table(rows)


def to_read(rows: Sequence[Mapping[str, Any]], count: int) -> str:
    """Format stored rollouts to be read: of those of the last step the first of each problem, then the second, up to ``count``.

    Args:
        rows: of ``samples.jsonl``.
    """
    last = [row for row in rows if row.get("step") == rows[-1].get("step")]
    seen: Counter[str] = Counter()
    places = []
    for row in last:
        places.append(seen[str(row.get("prompt_id"))])
        seen[str(row.get("prompt_id"))] += 1
    chosen = [row for _, row in sorted(zip(places, last, strict=True), key=lambda pair: pair[0])][:count]
    lines = [f"{len(chosen)} rollouts of step {last[0].get('step')}:" if chosen else "no rollout is stored"]
    for row in chosen:
        expected = "" if row.get("expected") is None else f" (expected {one_line(row['expected'])})"
        cut = ", cut at the longest" if row.get("truncated") else ""
        lines += [
            "",
            f"  {one_line(row.get('prompt'), LONGEST_TEXT)}",
            f"  -> {one_line(row.get('response'), LONGEST_TEXT)}",
            f"  {'correct' if row.get('correct') else 'wrong'}{cut}{expected}",
        ]
    return "\n".join(lines)


def count(text: str) -> int:
    """Parse a whole number of at least 0 (a type for argparse)."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def positive(text: str) -> float:
    """Parse a number above 0 (a type for argparse)."""
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value
