"""Figures of a report, by matplotlib: colour-blind-safe (Okabe and Ito's colours), told apart in grey by line and mark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.records.files import own_folder, replace_bytes, replace_text
from rlrt.records.jsonlines import is_number
from rlrt.records.printable import one_line
from rlrt.reporting.jobs import Job, finished, labels_of
from rlrt.reporting.tables import main_metric, short, values_of
from rlrt.statistics import mean_and_halfwidth

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C8C00")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST = len(COLOURS)
"""Settings that one figure shows; more would be a tangle."""
FREE, POSITIVE, SHARE = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)
SIZE = (6.4, 3.8)
"""Inches."""


@dataclass(frozen=True)
class Picture:
    """A figure and what it shows.

    Attributes:
        name: of its files.
        title: above it.
        caption: how to read it.
        figure: matplotlib's.
        variant: ``raw`` or ``smooth`` where there are both, of which a page shows one at a time.
    """

    name: str
    title: str
    caption: str
    figure: Any
    variant: str = ""

    def svg(self) -> str:
        """As text for a page: the same figure gives the same text."""
        import matplotlib

        out = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            self.figure.savefig(
                out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), bbox_inches="tight"
            )
        return out.getvalue()[out.getvalue().index("<svg") :]

    def save(self, folder: Path) -> list[Path]:
        """``NAME.svg`` and ``NAME.png`` (150 dots an inch)."""
        own_folder(folder)
        svg, png = folder / f"{self.name}.svg", folder / f"{self.name}.png"
        replace_text(svg, self.svg())
        pixels = io.BytesIO()
        self.figure.savefig(pixels, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        replace_bytes(png, pixels.getvalue())
        return [svg, png]


def axes(x: str, y: str) -> tuple[Any, Any]:
    """A figure with one pair of axes, named with their units."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE)
    made = figure.add_subplot()
    made.set_xlabel(x)
    made.set_ylabel(y)
    made.grid(alpha=0.3, linewidth=0.5)
    made.spines[["top", "right"]].set_visible(False)
    if x.startswith(("step", "k")):
        made.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, made


def chosen(jobs: Sequence[Job], baseline: str | None) -> list[str]:
    """The labels that a figure shows: all, or the baseline, the best and the worst by the main metric."""
    labels, metric = labels_of(jobs), main_metric(jobs)
    if len(labels) <= MOST:
        return labels

    def mean(label: str) -> float:
        values = values_of(finished(jobs, label), metric)
        return sum(values) / len(values) if values else -math.inf

    ranked = sorted((label for label in labels if label != baseline), key=mean, reverse=True)
    room = MOST - (baseline in labels)
    best = room - room // 3
    return [*([baseline] if baseline in labels and baseline else []), *ranked[:best], *ranked[best - room :]]


def shortened(label: str) -> str:
    """A label for a legend, as text: matplotlib would read what stands between two $ as mathematics, and hide a label that
    begins with _."""
    text = one_line(label, len(label))
    text = (text if len(text) <= 44 else text[:43] + "…").replace("$", "\\$")
    return f" {text}" if text.startswith("_") else text


def line(
    made: Any,
    number: int,
    label: str,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    marks: bool,
    limits: tuple[float, float],
) -> None:
    """A mean over seeds at every x, and its 95 % interval as a band, as far as the quantity can go at all (``limits``)."""
    points = [mean_and_halfwidth(v) for v in values]
    style: dict[str, Any] = {"color": COLOURS[number % MOST], "linestyle": LINES[number % MOST], "linewidth": 1.6}
    if marks:
        style |= {"marker": MARKS[number % MOST], "markersize": 5}
    made.plot(x, [m for m, _ in points], label=shortened(label), **style)
    sure = [(at, m, h) for at, (m, h) in zip(x, points, strict=True) if math.isfinite(h)]
    if sure:
        at = [s[0] for s in sure]
        low, high = [max(limits[0], m - h) for _, m, h in sure], [min(limits[1], m + h) for _, m, h in sure]
        made.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)


def legend(made: Any) -> None:
    """Below the axes, where it hides nothing."""
    made.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False, fontsize=8)


def pass_at_k(jobs: Sequence[Job], labels: Sequence[str]) -> list[Picture]:
    """Final pass@k against k, k on a logarithmic axis."""
    found = (re.fullmatch(r"eval/pass_at_([1-9]\d{0,8})", n, re.ASCII) for j in jobs for n in j.final)
    ks = sorted({int(match[1]) for match in found if match})
    if not ks:
        return []
    figure, made = axes("k, samples of a problem", "pass@k, share of problems solved")
    for number, label in enumerate(labels):
        done = [job for job in finished(jobs, label) if all(f"eval/pass_at_{k}" in job.final for k in ks)]
        if done:
            line(made, number, label, ks, [values_of(done, f"eval/pass_at_{k}") for k in ks], True, SHARE)
    made.set_xscale("log", base=2)
    made.set_xticks(ks, [str(k) for k in ks])
    legend(made)
    return [
        Picture(
            "pass_at_k", "pass@k", "Unbiased pass@k of the last evaluation: mean over seeds with 95 % interval.", figure
        )
    ]


def ablations(jobs: Sequence[Job]) -> list[Picture]:
    """The figures of every ablation that a method of these runs declares."""
    declared = {str(one): one for job in jobs for one in job.declared.ablations}
    pictures: list[Picture] = []
    for number, one in enumerate(declared.values()):
        pictures += ablation(jobs, one, f"_{number}" if number else "")
    return pictures


def ablation(jobs: Sequence[Job], one: Mapping[str, Any], suffix: str = "") -> list[Picture]:
    """The main metric against one key of the method, a line for each value of a second; and as a heat map where both vary.

    Args:
        one: the declaration (``rlrt.methods.declared.Ablation``).
        suffix: of the figures' names.
    """
    metric = main_metric(jobs)
    cells: dict[tuple[float, float], list[float]] = {}
    where = one.get("where")
    conditions = where.items() if isinstance(where, dict) else ()
    for job in jobs:
        x, by = job.keys.get(f"method.{one['x']}"), job.keys.get(f"method.{one['by']}")
        counts = all(job.keys.get(f"method.{key}") == value for key, value in conditions)
        if job.finished and metric in job.final and is_number(x) and is_number(by) and counts:
            cells.setdefault((float(x), float(by)), []).append(float(job.final[metric]))
    xs, bys = sorted({c[0] for c in cells}), sorted({c[1] for c in cells})
    if len(xs) < 2:
        return []
    figure, made = axes(one["x_label"], short(metric))
    for number, by in enumerate(bys[:MOST]):
        known_x = [x for x in xs if (x, by) in cells]
        line(made, number, f"{one['by_label']} = {by:g}", known_x, [cells[x, by] for x in known_x], True, SHARE)
    legend(made)
    caption = f"Final {metric} against {one['x']}: mean over seeds with 95 % interval by Student's t."
    pictures = [Picture(f"ablation_curves{suffix}", f"Ablation: {one['x_label']}", caption, figure)]
    if len(bys) > 1:
        pictures.append(heat_map(cells, xs, bys, one, short(metric), suffix))
    return pictures


def heat_map(
    cells: dict[tuple[float, float], list[float]],
    xs: list[float],
    bys: list[float],
    one: Mapping[str, Any],
    name: str,
    suffix: str,
) -> Picture:
    """Mean over seeds of every pair of values, the number written in its cell."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    made = figure.add_subplot()
    grid = [[sum(v) / len(v) if (v := cells.get((x, by))) else math.nan for x in xs] for by in bys]
    image = made.imshow(grid, cmap="cividis", aspect="auto", origin="lower")
    known = [v for row in grid for v in row if not math.isnan(v)]
    middle = (min(known) + max(known)) / 2
    for row, by in enumerate(bys):
        for column, x in enumerate(xs):
            value, seeds = grid[row][column], len(cells.get((x, by), []))
            text = f"{value:.3f}\nn={seeds}" if seeds else "-"
            made.text(
                column, row, text, ha="center", va="center", fontsize=8, color="white" if value < middle else "black"
            )
    made.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    made.set_yticks(range(len(bys)), [f"{by:g}" for by in bys])
    made.set_xlabel(one["x_label"])
    made.set_ylabel(one["by_label"])
    figure.colorbar(image, ax=made, label=name)
    caption = "Final mean over seeds in every cell, n: seeds."
    return Picture(f"ablation_map{suffix}", f"{one['x_label']} and {one['by_label']}", caption, figure)
