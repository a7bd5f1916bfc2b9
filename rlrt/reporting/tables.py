"""Tables of a report: means with intervals over seeds, paired differences, as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlrt.errors import UserError, nearest
from rlrt.records.printable import one_line
from rlrt.reporting.comparisons import comparisons
from rlrt.reporting.jobs import Job, finished, labels_of
from rlrt.statistics import (
    interquartile_mean,
    mean_and_halfwidth,
    probability_of_improvement,
    seeds_needed,
)


def plain_markdown(text: str) -> str:
    """Escape a text for Markdown: no link, no image, no HTML, no end of a table's cell."""
    return re.sub(r"([\\|<>`\[\]])", r"\\\1", one_line(text, len(text)))


def in_terminal(text: str) -> str:
    """Return a table's cell for a terminal: Markdown is not read there, so only the end of a cell is escaped."""
    return one_line(text, len(text)).replace("|", "\\|")


@dataclass(frozen=True)
class Table:
    """Cells of text under headings; the first column names the row."""

    headings: list[str]
    rows: list[list[str]]

    def markdown(self, cell: Callable[[str], str] = plain_markdown) -> str:
        """Format the table as Markdown; ``cell`` writes a text so that it is nothing but text."""
        lines = ["| " + " | ".join(map(cell, self.headings)) + " |", "|---" * len(self.headings) + "|"]
        return "\n".join([*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in self.rows)])

    def csv(self) -> str:
        """Format the table as CSV."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(map(inert, self.headings))
        writer.writerows(map(inert, row) for row in self.rows)
        return out.getvalue()

    def latex(self) -> str:
        """Format the table as a LaTeX ``tabular`` that needs no package."""
        lines = [f"\\begin{{tabular}}{{l{'r' * (len(self.headings) - 1)}}}", "\\hline"]
        lines += [" & ".join(map(tex, self.headings)) + " \\\\", "\\hline"]
        lines += [" & ".join(map(tex, row)) + " \\\\" for row in self.rows]
        return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"

    def html(self) -> str:
        """Format the table as HTML with all text escaped."""
        head = "".join(f"<th>{html.escape(h)}</th>" for h in self.headings)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self.rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def inert(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: a text that begins as one gets an apostrophe."""
    if not text.lstrip().startswith(("=", "+", "-", "@")) and not text.startswith(("\t", "\r", "\n")):
        return text
    try:
        float(text.partition(" ± ")[0])
    except ValueError:
        return text if text == "-" else f"'{text}"
    return text


def tex(text: str) -> str:
    """Escape a cell for LaTeX; one that begins with [ or * would be an option of the line break before it."""
    signs = {"\\": "\\textbackslash{}", "±": "$\\pm$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    escaped = "".join(signs.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in " ".join(text.split()))
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def interval(values: Sequence[float], form: str) -> str:
    """Format the mean and the half-width of its 95 % interval (Student's t over seeds)."""
    mean, half = mean_and_halfwidth(values)
    unsigned = form.removeprefix("+")
    return f"{mean:{form}}" + (f" ± {half:{unsigned}}" if len(values) > 1 else "")


def columns_of(jobs: Sequence[Job]) -> list[tuple[str, str, str]]:
    """Return (heading, metric, format) of each column; k of avg@k and pass@k is taken from the jobs' metrics."""
    names = {name for job in jobs for name in job.final}
    ks = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"eval/avg_at_(\d{1,9})", name, re.ASCII)))
    columns = [("greedy", "eval/greedy", ".3f")]
    for k in ks:
        columns += [(f"avg@{k}", f"eval/avg_at_{k}", ".3f"), (f"pass@{k}", f"eval/pass_at_{k}", ".3f")]
    columns += [
        ("distinct", "eval/distinct_correct", ".2f"),
        ("entropy", "eval/entropy", ".3f"),
        ("length", "eval/length_mean", ".1f"),
    ]
    return [c for c in columns if c[1] in names] or columns


def short(metric: str) -> str:
    """Return a metric as tables name it, such as avg@8 for eval/avg_at_8."""
    return metric.removeprefix("eval/").replace("_at_", "@")


def held_out(metrics: Iterable[str]) -> str | None:
    """Return the held-out metric: avg@k of the largest k, or greedy accuracy; None where none was evaluated."""
    averages = [match for name in metrics if (match := re.fullmatch(r"eval/avg_at_([1-9]\d{0,8})", name, re.ASCII))]
    if averages:
        return max(averages, key=lambda match: int(match[1]))[0]
    return "eval/greedy" if "eval/greedy" in metrics else None


def main_metric(jobs: Sequence[Job]) -> str:
    """Return the report's main metric: avg@k of the largest k, or greedy accuracy without one.

    Before any run has ended it is that of the evaluations so far.
    """
    ended = [name for job in jobs for name in job.final]
    return held_out(ended or [name for job in jobs for first in job.records()[:1] for name in first]) or "eval/greedy"


def values_of(jobs: Sequence[Job], metric: str) -> list[float]:
    """Return the final values of a metric, for the jobs that have it."""
    return [float(job.final[metric]) for job in jobs if metric in job.final]


def table(jobs: Sequence[Job]) -> Table:
    """Build the table of means: for each label the number of seeds, and mean with interval of every column."""
    columns = columns_of(jobs)
    rows = []
    for label in labels_of(jobs):
        done = finished(jobs, label)
        cells = [interval(v, form) if (v := values_of(done, name)) else "-" for _, name, form in columns]
        rows.append([label, str(len(done)), *cells])
    return Table(["method", "seeds", *(c[0] for c in columns)], rows)


def interquartile_table(jobs: Sequence[Job]) -> Table:
    """Build the table of interquartile means over seeds, which a single outlier cannot move; "-" below four seeds."""
    columns = columns_of(jobs)
    rows = []
    for label in labels_of(jobs):
        done = finished(jobs, label)
        cells = [
            "-" if (middle := interquartile_mean(values_of(done, name))) is None else f"{middle:{form}}"
            for _, name, form in columns
        ]
        rows.append([label, str(len(done)), *cells])
    return Table(["interquartile mean", "seeds", *(c[0] for c in columns)], rows)


def long_table(jobs: Sequence[Job]) -> Table:
    """Build a table with a row for every label and metric, in full precision, for other programs."""
    rows = []
    for label in labels_of(jobs):
        for _, name, _ in columns_of(jobs):
            values = values_of(finished(jobs, label), name)
            if values:
                mean, half = mean_and_halfwidth(values)
                ends = ["", ""] if math.isinf(half) else [repr(mean - half), repr(mean + half)]
                middle = interquartile_mean(values)
                cells = [repr(mean), "" if middle is None else repr(middle), *ends]
                rows.append([label, name, str(len(values)), *cells])
    return Table(["method", "metric", "seeds", "mean", "interquartile_mean", "low", "high"], rows)


def differences(jobs: Sequence[Job], baseline: str) -> Table:
    """Build the table of paired differences to the baseline, over the seeds that both labels have, for every column.

    P(larger) is the share of all pairs of seeds, one of each label, in which this label's value is larger; ties count half
    (arXiv 2108.13264); "-" for a single seed. "seeds to tell" is the number of paired seeds with which a paired t test would
    detect a difference of the observed size and spread (80 % power at 5 %). "p, Holm" belongs to the main metric: the p value
    of that test, corrected for all labels that are compared in it; "-" without two pairs that differ.

    Raises:
        UserError: if no run has the baseline's label.
    """
    labels = labels_of(jobs)
    if baseline not in labels:
        raise UserError(f"--baseline: there is no {baseline!r} in this sweep.{nearest(baseline, labels)}")
    columns, main = columns_of(jobs), main_metric(jobs)
    found = [(column, one) for column in columns for one in comparisons(jobs, baseline, column[1]) if one.pairs]
    rows = []
    for (heading, name, form), one in sorted(found, key=lambda f: labels.index(f[1].label)):
        needed = seeds_needed(one.gaps)
        own, base = zip(*one.pairs, strict=True)
        larger = f"{probability_of_improvement(own, base):.2f}" if len(one.pairs) > 1 else "-"
        told = "-" if needed is None else str(needed)
        p = "exploratory" if name != main else "-" if one.p is None else f"{one.p:.4f}"
        rows.append([one.label, heading, str(len(one.pairs)), interval(one.gaps, "+" + form), larger, told, p])
    return Table([f"minus {baseline}", "metric", "seeds", "difference", "P(larger)", "seeds to tell", "p, Holm"], rows)


def costs(jobs: Sequence[Job]) -> Table:
    """Build the table of costs over each label's finished runs: seconds in total and per step, and sampled tokens."""
    rows = []
    for label in labels_of(jobs):
        records = [r for job in finished(jobs, label) for r in job.records()]
        seconds = math.fsum(r.get("time/step_s", 0.0) for r in records)
        tokens = math.fsum(r.get("rollout/tokens", 0.0) for r in records)
        steps = [r["time/step_s"] for r in records if "time/step_s" in r]
        each = f"{sum(steps) / len(steps):.3f}" if steps else "-"
        rows.append([label, f"{seconds:.0f}", each, f"{tokens:.3g}"])
    return Table(["cost", "seconds in all", "seconds a step", "tokens sampled"], rows)
