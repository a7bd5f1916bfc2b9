"""A race in a report: the verdicts, each interval's trajectory, and what was spent, as its driver wrote them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.records.files import is_file, mapping, read_json, whole
from rlrt.records.jsonlines import is_number
from rlrt.records.printable import one_line
from rlrt.reporting.figures import COLOURS, LINES, MARKS, MOST, Picture, axes, legend, shortened
from rlrt.reporting.tables import Table, short

RACE = "race.json"
"""File in a sweep's folder."""
LONGEST = 500
"""Characters of a name or a reason."""

log = logging.getLogger("rlrt")


@dataclass(frozen=True)
class Raced:
    """An arm of a race.

    Attributes:
        name: the report's label.
        said: its verdict, or ``open``.
        reason: why it has none.
        runs: runs that were proposed for it.
        differences: of its pairs, arm minus baseline, in the order of the seeds.
        intervals: the interval after each pair; infinite ends before anything is known.
    """

    name: str
    said: str
    reason: str
    runs: int
    differences: list[float]
    intervals: list[tuple[float, float]]


@dataclass(frozen=True)
class RaceRecord:
    """A race as ``race.json`` has it: what was declared, the baseline's name and runs, and the arms."""

    metric: str
    alpha: float
    margin: float
    scale: float
    max_seeds: int
    baseline: str
    baseline_runs: int
    arms: list[Raced]

    def table(self) -> Table:
        """Build the table of verdicts; one row for each arm, and one for what was spent in all."""
        metric = short(self.metric)
        headings = [f"minus {self.baseline}", "verdict", "pairs", metric, "low", "high", "runs"]
        rows = [
            [
                arm.name,
                arm.said,
                str(len(arm.differences)),
                f"{math.fsum(arm.differences) / len(arm.differences):+.4f}" if arm.differences else "-",
                *(
                    f"{end:+.4f}" if math.isfinite(end) else "-"
                    for end in (arm.intervals or [(-math.inf, math.inf)])[-1]
                ),
                str(arm.runs),
            ]
            for arm in self.arms
        ]
        return Table(headings, rows)

    def note(self) -> str:
        """Say what the verdicts mean, and what else on the page is none."""
        runs = self.baseline_runs + sum(arm.runs for arm in self.arms)
        return (
            f"Anytime-valid intervals of the paired difference in {self.metric}: with probability {1 - self.alpha:g} all arms' "
            f"intervals hold their means at every look (alpha {self.alpha:g} in equal parts for {len(self.arms)} arms, scale "
            f"{self.scale:g}, declared before the first run), for normal differences. Equivalent: within {self.margin:g} "
            f"either way. Spent: {runs} runs, {self.baseline_runs} of the baseline, of at most "
            f"{(len(self.arms) + 1) * self.max_seeds}. Every other table and figure of this page is exploratory: the "
            "differences themselves decided how many seeds it has."
        )

    def reasons(self) -> list[str]:
        """List the arms that failed or cannot be told, with the reason."""
        return [f"{arm.name}: {arm.said}: {arm.reason}" for arm in self.arms if arm.reason]

    def picture(self) -> list[Picture]:
        """Draw every arm's interval after each pair, and its mean; [] before an interval is finite."""
        arms = [arm for arm in self.arms if any(math.isfinite(low) for low, _ in arm.intervals)][:MOST]
        if not arms:
            return []
        metric = short(self.metric)
        from matplotlib.ticker import MaxNLocator

        figure, made = axes("pairs of seeds", f"difference in {metric}")
        made.axhspan(-self.margin, self.margin, color="0.9", linewidth=0)
        made.axhline(0, color="0.4", linewidth=0.8)
        for number, arm in enumerate(arms):
            known = [i for i, (low, _) in enumerate(arm.intervals) if math.isfinite(low)]
            means = [math.fsum(arm.differences[: i + 1]) / (i + 1) for i in range(len(arm.differences))]
            style: Mapping[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number], "linewidth": 1.6}
            made.plot(range(1, len(means) + 1), means, label=f"{shortened(arm.name)}: {arm.said}", **style)
            for end in (0, 1):
                made.plot(
                    [i + 1 for i in known], [arm.intervals[i][end] for i in known], color=COLOURS[number], linewidth=0.8
                )
            (low, high), at = arm.intervals[-1], len(means) + 0.05 * number  # beside each other where they end together
            made.vlines(at, low, high, color=COLOURS[number], linewidth=1.2)
            made.plot(
                [at] * 3, [low, means[-1], high], color=COLOURS[number], marker=MARKS[number], markersize=4, linewidth=0
            )
        largest = max(self.margin, *(abs(end) for arm in arms for end in arm.intervals[-1]))
        made.set_ylim(-3 * largest, 3 * largest)  # the first finite intervals may be a hundred times as wide
        made.set_xlim(0.5, max(len(arm.differences) for arm in arms) + 0.5)
        made.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(made)
        caption = (
            f"Mean difference to {self.baseline} after each pair, and its anytime-valid interval (thin lines) where it is "
            f"finite; grey: the margin of equivalence. An arm ends where its interval decides. At most {MOST} arms."
        )
        return [Picture("race", "The race", caption, figure)]


def read_race(sweep: Path) -> RaceRecord | None:
    """Read a sweep's race; None for a sweep that is none, or with a warning for one whose file does not say what it should."""
    if not is_file(sweep / RACE):
        return None
    try:
        return record_of(read_json(sweep / RACE))
    except (AttributeError, KeyError, TypeError, ValueError):
        log.warning(
            "%s: expected a race's declaration and arms, found other values; it is left out", one_line(sweep / RACE)
        )
        return None


def record_of(stored: Mapping[str, Any]) -> RaceRecord:
    """Build a race from the content of its file; values of a wrong kind raise."""
    declared, baseline = mapping(stored["declared"]), mapping(stored["baseline"])
    return RaceRecord(
        metric=one_line(declared["metric"], LONGEST),
        alpha=number(declared["alpha"]),
        margin=number(declared["margin"]),
        scale=number(declared["scale"]),
        max_seeds=whole(stored["max_seeds"]),
        baseline=one_line(baseline["name"], LONGEST),
        baseline_runs=whole(baseline["runs"]),
        arms=[arm_of(mapping(arm)) for arm in stored["arms"]],
    )


def arm_of(stored: Mapping[str, Any]) -> Raced:
    """Build an arm from its part of the file; values of a wrong kind raise."""
    ends = [(low, high) for low, high in stored["intervals"]]
    intervals = [
        (-math.inf if low is None else number(low), math.inf if high is None else number(high)) for low, high in ends
    ]
    differences = [number(value) for value in stored["differences"]]
    if len(differences) != len(intervals):
        raise ValueError("expected as many intervals as differences")
    return Raced(
        name=one_line(stored["name"], LONGEST),
        said=one_line(stored["said"], LONGEST),
        reason=one_line(stored["reason"], LONGEST),
        runs=whole(stored["runs"]),
        differences=differences,
        intervals=intervals,
    )


def number(value: Any) -> float:
    """Return a finite number; another value raises."""
    if not is_number(value):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)
