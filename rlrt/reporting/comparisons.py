"""Paired comparisons of a sweep's labels with a baseline, over the seeds that both have finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlrt.reporting.jobs import Job, finished, labels_of
from rlrt.statistics import holm, paired_p

AHEAD = ("queued", "running")
"""States of runs that may still finish by themselves."""


@dataclass(frozen=True)
class Comparison:
    """A label beside the baseline, in one metric.

    Attributes:
        label: what is compared.
        pairs: (its value, the baseline's) for every seed for which both have one.
        p: two-sided paired t test of the differences, corrected by Holm for all comparisons of the metric; None where the test
            has none.
        runs: the label's runs.
        ahead: those of them that wait or run.
        unfinished: those of them that ended otherwise than by finishing, and enter no pair.
    """

    label: str
    pairs: list[tuple[float, float]]
    p: float | None
    runs: int
    ahead: int
    unfinished: int

    @property
    def gaps(self) -> list[float]:
        """The label's value minus the baseline's, for each pair."""
        return [own - base for own, base in self.pairs]


def comparisons(jobs: Sequence[Job], baseline: str, metric: str) -> list[Comparison]:
    """Compare every other label with the baseline in a metric of the final evaluation."""
    base = {job.seed: job.final for job in finished(jobs, baseline)}
    found = []
    for label in labels_of(jobs):
        if label == baseline:
            continue
        done = finished(jobs, label)
        both = [(j.final, base[j.seed]) for j in done if metric in j.final and metric in base.get(j.seed, {})]
        pairs = [(float(own[metric]), float(other[metric])) for own, other in both]
        of_label = [job.state for job in jobs if job.label == label]
        ahead = sum(state in AHEAD for state in of_label)
        one = Comparison(label, pairs, None, len(of_label), ahead, len(of_label) - len(done) - ahead)
        found.append(replace(one, p=paired_p(one.gaps) if pairs else None))
    corrected = iter(holm([one.p for one in found if one.p is not None]))
    return [one if one.p is None else replace(one, p=next(corrected)) for one in found]
