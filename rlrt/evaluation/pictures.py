"""The analyses of several runs as figures side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlrt.evaluation.analysis import PLACES
from rlrt.evaluation.study import Findings, tables
from rlrt.reporting.figures import SHARE, Picture, axes, legend, line


def told_apart(all_found: Sequence[Findings]) -> list[Findings]:
    """The runs under labels that lack what all of them share; a single run needs none."""
    words = [found.label.split(" ") for found in all_found]
    common = set(words[0]).intersection(*map(set, words))
    labels = [" ".join(w for w in mine if w not in common) for mine in words]
    return [dataclasses.replace(found, label=label) for found, label in zip(all_found, labels, strict=True)]


def pictures(all_found: Sequence[Findings]) -> list[Picture]:
    """All runs side by side."""
    made = []
    for name, x, y, title in (
        ("shift", "Jensen-Shannon divergence above, nats", "share of positions", "How far the policies moved"),
        ("overlap", "k", "top-k overlap with the start at moved positions", "What they kept"),
        ("promoted", "base probability below", "share of moved positions", "Tokens lifted to the top"),
    ):
        figure, panel = axes(x, y)
        there = [(f, tables(f)[name][1]) for f in all_found if name in tables(f)]
        for number, (found, rows) in enumerate(there):
            line(panel, number, found.label or "run", [r[0] for r in rows], [[r[1]] for r in rows], True, SHARE)
        if name == "promoted":
            panel.set_xscale("log")
        if there:
            legend(panel)
            made.append(
                Picture(
                    f"analysis_{name}",
                    title,
                    "Last checkpoint, rollouts on problems that the start solves 0-2 of 8 times.",
                    figure,
                )
            )
    for kind in ("wrong to right", "right to wrong"):
        figure, panel = axes("step (updates)", f"{kind}, share of rollouts")
        number = 0
        for found in all_found:
            for place in PLACES:
                points = [
                    (s, t / n) for (s, k, p), (t, n) in sorted(found.turned.items()) if (k, p) == (kind, place) and n
                ]
                if points:
                    label = f"{place}: {found.label}" if found.label else place
                    line(panel, number, label, [p[0] for p in points], [[p[1]] for p in points], True, SHARE)
                number += 1
        if panel.lines:
            legend(panel)
            made.append(
                Picture(
                    f"analysis_{kind.replace(' ', '_')}",
                    f"Continued anew: {kind}",
                    "Rollouts continued anew from their most asymmetric, a random, their least asymmetric position.",
                    figure,
                )
            )
    figure, panel = axes("k, samples of a problem", "pass@k")
    for number, (found, name, values) in enumerate((f, n, v) for f in all_found for n, v in f.pass_at.items()):
        line(
            panel,
            number,
            f"{name}: {found.label}" if found.label else name,
            range(1, len(values) + 1),
            [[v] for v in values],
            False,
            SHARE,
        )
    panel.set_xscale("log", base=2)
    legend(panel)
    return [*made, Picture("analysis_pass_at_k", "pass@k before and after", "Start and last checkpoint.", figure)]
