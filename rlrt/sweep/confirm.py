"""A search that confirms itself: when its trials are over, its best runs on seeds that it has not seen, beside the default.

The best of many noisy values was chosen for being high, so its value is too high. ``hydra.sweeper.confirm`` seeds of the best
and as many of the default, fixed before any of them ran, say what it is worth: that is what the sweep reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlrt.records.files import read_json, write_json
from rlrt.reporting.confirmed import BEST
from rlrt.statistics import mean_and_halfwidth
from rlrt.sweep.plan import Job
from rlrt.sweep.search import Search
from rlrt.sweep.source import Closing, Ended, number_of, waits_for_a_person


class Confirmed:
    """A search as a source of jobs that goes on with fresh seeds of its best and of the default.

    Args:
        search: the search.
        sweep: the sweep's folder.
        metric: the search's objective.
        seeds: the fresh seeds.
        job: builds a job from overrides beyond those that all trials share.
    """

    def __init__(
        self, search: Search, sweep: Path, metric: str, seeds: Sequence[int], job: Callable[[Sequence[str]], Job]
    ) -> None:
        self._search, self._sweep, self._metric, self._seeds, self._job = search, sweep, metric, seeds, job
        self.prunes = search.prunes
        self._pairs: list[tuple[Job, Job]] = []
        self._halted, self._all_ended = False, False

    def begin(self) -> list[Job]:
        """Return the jobs of the search; those of the confirmation come again when its trials are found to be over."""
        return self._search.begin()

    def more(self, room: int) -> list[Job]:
        """Propose trials, and after the last one every run of the confirmation."""
        if self._search.unfinished() or self._search.halted or self._pairs:
            return self._search.more(room)
        best = self._search.best_overrides()
        if best is None:
            return []
        self._pairs = [(self._job([*best, f"seed={s}"]), self._job([f"seed={s}"])) for s in self._seeds]
        names = ("best", "default")
        tagged = [(job, name) for pair in self._pairs for job, name in zip(pair, names, strict=True)]
        return [replace(job, tags={"rlrt.confirms": name}) for job, name in tagged]

    def watch(self, ended: Ended) -> tuple[list[Path], list[str]]:
        """Let the search watch its trials, and see whether the confirmation is over."""
        states = [ended.get(job.folder) for pair in self._pairs for job in pair]
        self._halted = any(state is not None and waits_for_a_person(state) for state in states)
        self._all_ended = bool(states) and all(state is not None for state in states)
        return self._search.watch(ended)

    def unfinished(self) -> bool:
        """True while the search is, or its best has not been confirmed."""
        if self._search.unfinished():
            return True
        waits = self._search.halted or self._halted or self._all_ended
        return not waits and self._search.best_overrides() is not None

    def headline(self) -> str:
        """Return the search's progress, and that its best is being confirmed."""
        return self._search.headline() + (f"; confirming on {len(self._seeds)} seeds" if self._pairs else "")

    def _value(self, job: Job, ended: Ended) -> float:
        """Return a run's value; NaN if it has none."""
        state = ended.get(job.folder)
        return number_of(state.final.get(self._metric)) if state is not None and state.name == "finished" else math.nan

    def close(self, ended: Ended) -> Closing:
        """Report the confirmation; the search's own value is named as what it is, and is no metric in MLflow."""
        closing = self._search.close(ended)
        if not self._pairs:
            return closing
        values = [(self._value(best, ended), self._value(default, ended)) for best, default in self._pairs]
        both = [(best, default) for best, default in values if math.isfinite(best) and math.isfinite(default)]
        lines = [*closing.lines, *said(self._metric, both, len(self._seeds))]
        found: dict[str, Any] = {
            "metric": self._metric,
            "seeds": list(self._seeds),
            "pairs": [list(pair) for pair in both],
        }
        metrics: dict[str, float] = {}
        if both:
            means = [math.fsum(values) / len(both) for values in zip(*both, strict=True)]
            metrics = {
                "confirmed/best": means[0],
                "confirmed/default": means[1],
                "confirmed/difference": means[0] - means[1],
            }
        write_json(self._sweep / BEST, read_json(self._sweep / BEST) | {"confirmation": found | metrics})
        short = len(both) < len(self._seeds)
        return Closing(lines, max(closing.code, int(short)), closing.tags, metrics, closing.step)


def said(metric: str, pairs: Sequence[tuple[float, float]], wanted: int) -> list[str]:
    """Say what fresh seeds make of a search's best.

    Args:
        metric: its name.
        pairs: (best, default) of each seed that has both.
        wanted: pairs that were asked for.
    """
    lines = ["the search's own value of its best was chosen for being high; what counts is:"]
    if len(pairs) < wanted:
        lines.append(f"confirmed on {len(pairs)} of {wanted} seeds only; the same command goes on with the others")
    if pairs:
        best, default, gap = (
            mean_and_halfwidth(values)
            for values in ([b for b, _ in pairs], [d for _, d in pairs], [b - d for b, d in pairs])
        )
        texts = [f"{m:.4f}" + (f" ± {h:.4f}" if math.isfinite(h) else "") for m, h in (best, default)]
        fresh = f"{len(pairs)} fresh seed{'s' if len(pairs) > 1 else ''}"
        half = f" ± {gap[1]:.4f}" if math.isfinite(gap[1]) else ""
        lines.append(
            f"confirmed on {fresh}: {metric} {texts[0]}, the default's {texts[1]}, paired difference "
            f"{gap[0]:+.4f}{half} (95 %, Student's t)"
        )
    return lines
