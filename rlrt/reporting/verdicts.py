"""What a sweep says of each comparison, in words: paired with the baseline in the main metric, every failure counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlrt.reporting.comparisons import AHEAD, Comparison, comparisons
from rlrt.reporting.jobs import Job
from rlrt.reporting.races import Raced, RaceRecord
from rlrt.reporting.tables import main_metric, short
from rlrt.statistics import mean_and_halfwidth, seeds_needed

TO = {"better": "than", "worse": "than", "equivalent": "to"}
LEVEL = 0.05
"""Corrected p value below which a comparison is called."""


def said(one: Comparison, baseline: str, metric: str) -> str:
    """Say whether a label is better or worse than the baseline, or that this cannot be told and what it would take."""
    n, gaps = len(one.pairs), one.gaps
    if n == 0:
        return "nothing to compare yet" if one.ahead else f"no seed that {baseline} has finished as well"
    mean, half = mean_and_halfwidth(gaps)
    if n == 1:
        return f"{metric} {mean:+.3f} beside {baseline} with one seed, which tells nothing"
    if one.p is None:
        return f"{metric} {mean:+.3f} beside {baseline} in each of {n} paired seeds, so that its spread is not known"
    found = f"{metric} {mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}), {n} paired seeds, p {shown(one.p)}"
    if one.p < LEVEL:
        return f"{'better' if mean > 0 else 'worse'} than {baseline}; {found}"
    needed = seeds_needed(gaps)
    more = f"; {needed} seeds would tell a difference of this size" if needed is not None and needed > n else ""
    return f"cannot be told from {baseline}; {found}{more}"


def verdicts(jobs: Sequence[Job], baseline: str | None, race: RaceRecord | None) -> list[str]:
    """Return the sentences that a report opens with; those of a race are its own."""
    if race is not None:
        return [raced(arm, race) for arm in race.arms]
    if baseline is None:
        return []
    found = comparisons(jobs, baseline, main_metric(jobs))
    lines = [
        f"{one.label}: {said(one, baseline, short(main_metric(jobs)))}{missing(one.runs, one.ahead, one.unfinished)}."
        for one in found
    ]
    states = [job.state for job in jobs if job.label == baseline]
    ahead = sum(state in AHEAD for state in states)
    if rest := missing(len(states), ahead, len(states) - ahead - states.count("finished")):
        lines.append(f"{baseline}, the baseline{rest}.")
    return lines


def missing(runs: int, ahead: int, unfinished: int) -> str:
    """Say how many of a label's runs have not ended, and how many ended without finishing."""
    parts = [f"; {ahead} of its {runs} runs have not ended"] if ahead else []
    if unfinished:
        parts.append(f"; {unfinished} of its {runs} runs did not finish and count nowhere")
    return "".join(parts)


def raced(arm: Raced, race: RaceRecord) -> str:
    """Say what a race says of an arm."""
    metric, n = short(race.metric), len(arm.differences)
    low, high = (arm.intervals or [(-math.inf, math.inf)])[-1]
    reason = f"; {arm.reason}" if arm.reason else ""
    if not math.isfinite(low) or not math.isfinite(high):
        return f"{arm.name}: {arm.said} beside {race.baseline}, after {n} pairs, too few for an interval{reason}."
    mean, to = math.fsum(arm.differences) / n, TO.get(arm.said, "beside")
    found = f"{metric} {mean:+.3f} ({low:+.3f} to {high:+.3f}, valid at every look), {n} pairs"
    return f"{arm.name}: {arm.said} {to} {race.baseline}; {found}{reason}."


def shown(p: float) -> str:
    """Format a p value."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
