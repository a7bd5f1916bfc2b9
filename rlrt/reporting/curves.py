"""A report's curves over the steps of training, as they were recorded and smoothed, and the groups' shares."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlrt.records.jsonlines import is_number
from rlrt.reporting.figures import (
    COLOURS,
    FREE,
    POSITIVE,
    SHARE,
    Picture,
    ablations,
    axes,
    chosen,
    legend,
    line,
    pass_at_k,
    shortened,
)
from rlrt.reporting.jobs import Job
from rlrt.reporting.tables import main_metric, short

CURVES = (
    ("reward/mean", "reward", "mean reward of the step's rollouts", FREE),
    ("policy/entropy", "entropy", "policy entropy, nats per token", POSITIVE),
    ("rollout/length_mean", "length", "response length, tokens", POSITIVE),
    ("rollout/truncated_share", "truncation", "truncated rollouts, share", SHARE),
)
"""Metric, name, axis, and how far the quantity can go: drawn of every run. Methods declare further ones."""
ALL_CORRECT, ALL_WRONG = "group/all_correct_share", "group/all_wrong_share"
Series = dict[str, dict[int, list[float]]]
"""Label -> step -> the values of its seeds."""
Curve = tuple[str, str, str, tuple[float, float]]
"""Metric, name, axis and limits."""
PARTS = 20
"""A smoothed curve has this many windows by default."""


def read_series(
    jobs: Sequence[Job], labels: Sequence[str], metrics: Iterable[str], window: int = 1
) -> dict[str, Series]:
    """Return metric -> label -> step -> the values of its seeds; each record is read once.

    Failed runs are left out, running ones count as far as they are. Each run is smoothed by itself: a value is the mean of
    itself and of the ``window - 1`` before it.
    """
    found: dict[str, Series] = {metric: {} for metric in metrics}
    for job in jobs:
        if job.label not in labels or job.state in ("failed", "queued"):
            continue
        records = job.records()
        for metric, values in found.items():
            recorded = ((r["step"], float(r[metric])) for r in records if metric in r)
            for step, value in smoothed(recorded, window):
                values.setdefault(job.label, {}).setdefault(step, []).append(value)
    return found


def smoothed(values: Iterable[tuple[int, float]], window: int) -> Iterator[tuple[int, float]]:
    """Yield (step, mean of this value and of up to ``window - 1`` before it)."""
    last: deque[float] = deque(maxlen=window)
    for step, value in values:
        last.append(value)
        yield step, sum(last) / len(last)


def over_steps(
    values: Series,
    labels: Sequence[str],
    unit: str,
    marks: bool,
    limits: tuple[float, float],
) -> Any:
    """What ``read_series`` found of a metric, a line for each label."""
    figure, made = axes("step (updates)", unit)
    for number, label in enumerate(labels):
        steps = values.get(label, {})
        if steps:
            line(made, number, label, sorted(steps), [steps[s] for s in sorted(steps)], marks, limits)
    legend(made)
    return figure


def curves_of(jobs: Sequence[Job]) -> list[Curve]:
    """Metric, name, axis and limits of what is drawn: of every run, and what the methods of these runs declare."""
    curves = {metric: (metric, name, axis, limits) for metric, name, axis, limits in CURVES}
    for one in (curve for job in jobs for curve in job.declared.curves):
        low, high = (value if is_number(value) else None for value in (one.get("low"), one.get("high")))
        limits = (-math.inf if low is None else low, math.inf if high is None else high)
        if one["name"] not in [name for metric, name, _, _ in curves.values() if metric != one["metric"]]:
            curves.setdefault(one["metric"], (one["metric"], one["name"], one["axis"], limits))
    return list(curves.values())


def learning_curves(
    found: Mapping[str, Series], curves: Sequence[Curve], labels: Sequence[str], kind: str
) -> list[Picture]:
    """Draw curves against the step, as far as they were recorded.

    Args:
        found: of ``read_series``.
        curves: of ``curves_of``.
        labels: a line each.
        kind: how many values a point is the mean of, and the figure's variant and name's end: "1", "1 raw", "25 smooth".
    """
    width, _, variant = kind.partition(" ")
    of = f"mean of the last {width} values of each run, then over seeds" if variant == "smooth" else "mean over seeds"
    suffix = "_smooth" if variant == "smooth" else ""
    return [
        Picture(
            name=f"curve_{name}{suffix}",
            title=f"Learning curve: {name}",
            caption=f"{metric} against the step: {of}, band: 95 % interval by Student's t where there are two or more.",
            figure=over_steps(found[metric], labels, unit, False, limits),
            variant=variant,
        )
        for metric, name, unit, limits in curves
        if found[metric]
    ]


def evaluation_curve(values: Series, metric: str, labels: Sequence[str]) -> list[Picture]:
    """The main held-out metric at every evaluation, once there are two of them."""
    if len({step for steps in values.values() for step in steps}) < 2:
        return []
    figure = over_steps(values, labels, f"{short(metric)}, share of correct samples", True, SHARE)
    caption = f"{metric} at every evaluation: mean over seeds, band: 95 % interval by Student's t."
    return [Picture("curve_evaluation", f"Held out: {short(metric)}", caption, figure)]


def group_shares(found: Mapping[str, Series], labels: Sequence[str]) -> list[Picture]:
    """Share of groups whose rollouts are all correct, all wrong, or mixed (the only ones with a signal), over the run."""
    kinds = (("all correct", ALL_CORRECT, COLOURS[2], ""), ("all wrong", ALL_WRONG, COLOURS[1], "////"))
    values = {name: found[metric] for name, metric, _, _ in kinds}
    labels_shown = [label for label in labels if values["all correct"].get(label)]
    if not labels_shown:
        return []
    figure, made = axes("share of groups, all steps", "")
    for row, label in enumerate(labels_shown):
        left = 0.0
        parts = [(n, mean_of(values[n].get(label, {})), c, h) for n, _, c, h in kinds]
        parts.insert(1, ("mixed", 1 - sum(p[1] for p in parts), COLOURS[5], "...."))
        for name, share, colour, hatch in parts:
            style = {"color": colour, "hatch": hatch, "edgecolor": "white", "label": name if row == 0 else None}
            made.barh(row, share, left=left, **style)
            left += share
    made.set_yticks(range(len(labels_shown)), [shortened(label) for label in labels_shown])
    made.invert_yaxis()
    made.set_xlim(0, 1)
    legend(made)
    caption = "Groups by the verdicts of their rollouts, mean over steps and seeds. Only mixed groups carry a signal."
    return [Picture("groups", "Groups with a signal", caption, figure)]


def mean_of(steps: dict[int, list[float]]) -> float:
    """The mean over all steps and seeds."""
    values = [v for vs in steps.values() for v in vs]
    return sum(values) / len(values) if values else 0.0


def pictures_of(jobs: Sequence[Job], baseline: str | None, window: int | None = None) -> list[Picture]:
    """All figures that the jobs have numbers for.

    Args:
        jobs: of the sweep.
        baseline: which of many labels are drawn depends on it.
        window: values that a point of a smoothed learning curve is the mean of, 1 for none; None: a twentieth of the longest
            run's steps.
    """
    labels, curves, main = chosen(jobs, baseline), curves_of(jobs), main_metric(jobs)
    metrics = [metric for metric, *_ in curves]
    found = read_series(jobs, labels, [main, *metrics, ALL_CORRECT, ALL_WRONG])
    last = max((step for series in found.values() for steps in series.values() for step in steps), default=0)
    window = max(1, last // PARTS) if window is None else window
    drawn = learning_curves(found, curves, labels, "1 raw" if window > 1 else "1")
    if window > 1:
        drawn += learning_curves(read_series(jobs, labels, metrics, window), curves, labels, f"{window} smooth")
    return [
        *evaluation_curve(found[main], main, labels),
        *ablations(jobs),
        *pass_at_k(jobs, labels),
        *drawn,
        *group_shares(found, labels),
    ]
