"""The analyses of several runs as figures side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlrt.evaluation.analysis import PLACES
from rlrt.evaluation.asymmetry import CLASSES
from rlrt.evaluation.study import Findings, tables
from rlrt.reporting.figures import COLOURS, SHARE, Picture, axes, legend, line, shortened

LAST = "Last checkpoint, rollouts on problems that the start solves 0-2 of 8 times."
CURVES = (
    ("shift", "Jensen-Shannon divergence above, nats", "share of positions", "How far the policies moved"),
    ("overlap", "k", "top-k overlap with the start at moved positions", "What they kept"),
    ("promoted", "base probability below", "share of moved positions", "Tokens lifted to the top"),
)
"""Table of the analyses, axes, and title of the figure."""
KINDS = ("wrong to right", "right to wrong")
"""The turns of a verdict that are counted."""
HATCHES = ("", "///", "...", "xxx", "\\\\")
"""Tell the kinds of tokens apart in grey."""
MOST_RUNS = 4
"""Runs whose contexts one figure shows."""


def told_apart(runs: Sequence[Findings]) -> list[Findings]:
    """The runs under labels without the parts that all runs share; a single run needs no label."""
    parts = [run.label.split(" ") for run in runs]
    common = set(parts[0]).intersection(*map(set, parts))
    labels = [" ".join(part for part in own if part not in common) for own in parts]
    return [dataclasses.replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def pictures(runs: Sequence[Findings]) -> list[Picture]:
    """All figures of the runs, one line or more for each run."""
    curves = [curve(runs, *one) for one in CURVES]
    turns = [turned(runs, kind) for kind in KINDS]
    made = (*curves, *turns, carried(runs))
    return [*(picture for picture in made if picture is not None), pass_at_k(runs)]


def curve(runs: Sequence[Findings], name: str, x: str, y: str, title: str) -> Picture | None:
    """One table of the last checkpoints as lines; None where no run has the table."""
    figure, panel = axes(x, y)
    rows_by_run = [(run, tables(run)[name][1]) for run in runs if name in tables(run)]
    if not rows_by_run:
        return None
    for number, (run, rows) in enumerate(rows_by_run):
        line(panel, number, run.label or "run", [r[0] for r in rows], [[r[1]] for r in rows], True, SHARE)
    if name == "promoted":
        panel.set_xscale("log")
    legend(panel)
    return Picture(f"analysis_{name}", title, LAST, figure)


def turned(runs: Sequence[Findings], kind: str) -> Picture | None:
    """Share of rollouts whose verdict turned when they were continued anew, at each checkpoint; None where none was tried."""
    figure, panel = axes("step (updates)", f"{kind}, share of rollouts")
    number = 0
    for run in runs:
        for position in PLACES:
            points = [
                (step, turns / tried)
                for (step, of_kind, at), (turns, tried) in sorted(run.turned.items())
                if (of_kind, at) == (kind, position) and tried
            ]
            if points:
                label = f"{position}: {run.label}" if run.label else position
                line(panel, number, label, [p[0] for p in points], [[p[1]] for p in points], True, SHARE)
            number += 1
    if not panel.lines:
        return None
    legend(panel)
    caption = "Rollouts continued anew from their most asymmetric, a random, their least asymmetric position."
    return Picture(f"analysis_{kind.replace(' ', '_')}", f"Continued anew: {kind}", caption, figure)


def carried(runs: Sequence[Findings]) -> Picture | None:
    """Share of the sum of |D| by kind of token under each context, on the correct rollouts of the last checkpoints; None where
    there are none."""
    bars: dict[str, dict[str, float]] = {}
    for run in runs[:MOST_RUNS]:
        for policy, verdict, context, kind, _, _, share, *_ in tables(run)["asymmetry"][1]:
            if (policy, verdict) == ("last", "correct") and kind != "all" and share != "":
                bars.setdefault(f"{context}: {run.label}" if run.label else context, {})[kind] = share
    if not bars:
        return None
    figure, panel = axes("share of the sum of |D|", "")
    figure.set_figheight(1.5 + 0.3 * len(bars))
    left = [0.0] * len(bars)
    for number, kind in enumerate(CLASSES):
        widths = [shares.get(kind, 0.0) for shares in bars.values()]
        panel.barh(range(len(bars)), widths, left=left, label=kind, color=COLOURS[number], hatch=HATCHES[number])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    panel.set_yticks(range(len(bars)), [shortened(label) for label in bars])
    panel.invert_yaxis()
    legend(panel)
    caption = "D of the same correct rollouts of the last checkpoint under each teacher context, by kind of token."
    return Picture("analysis_asymmetry", "Which tokens carry D", caption, figure)


def pass_at_k(runs: Sequence[Findings]) -> Picture:
    """pass@k of start and last checkpoint against k, k on a logarithmic axis."""
    figure, panel = axes("k, samples of a problem", "pass@k")
    policies = [(run, name, values) for run in runs for name, values in run.pass_at.items()]
    for number, (run, name, values) in enumerate(policies):
        label = f"{name}: {run.label}" if run.label else name
        line(panel, number, label, range(1, len(values) + 1), [[v] for v in values], False, SHARE)
    panel.set_xscale("log", base=2)
    legend(panel)
    return Picture("analysis_pass_at_k", "pass@k before and after", "Start and last checkpoint.", figure)
