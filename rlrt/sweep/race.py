"""A race: arms against a baseline on paired seeds, each until an anytime-valid interval of the difference decides.

A verdict is a function of the finished runs' values in the order of their seeds, whichever came first: an arm's interval after
n pairs is that of the first n seeds. So runs may finish in any order, an arm may be seeds ahead of another, and a driver that
takes over finds the same verdicts in the same folders without any state of its own. ``race.json`` is written for the report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, shown
from rlrt.records.files import mapping, read_json, write_json
from rlrt.reporting.races import RACE
from rlrt.statistics import has_no_spread, narrowed, verdict
from rlrt.sweep.plan import SPEC, Job
from rlrt.sweep.settings import RaceKeys
from rlrt.sweep.source import Closing, Ended, number_of, waits_for_a_person
from rlrt.sweep.state import JobState

Make = Callable[[Sequence[str], int], Job]
"""Builds the job of an arm's overrides and a seed."""


@dataclass(frozen=True)
class Arm:
    """One of the combinations that race: the name by which people know it, and its overrides without the seed."""

    name: str
    overrides: tuple[str, ...]


@dataclass
class Lane:
    """An arm's runs and what they say so far.

    Attributes:
        arm: whose.
        jobs: one for each seed that was proposed, in the order of the seeds.
        differences: of the pairs that were compared, arm minus baseline.
        intervals: the interval after each of them, intersected with those before.
        said: ``open``, ``better``, ``worse``, ``equivalent``, ``cannot tell`` or ``failed``.
        reason: why an arm failed or cannot be told.
    """

    arm: Arm
    jobs: list[Job] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)
    intervals: list[tuple[float, float]] = field(default_factory=list)
    said: str = "open"
    reason: str = ""


class Race:
    """A race as a source of jobs.

    Args:
        sweep: the sweep's folder.
        keys: the checked settings of the race.
        metric: the metric that is compared; larger is better.
        arms: the baseline, then the others.
        make: builds a job.
    """

    prunes = False

    def __init__(self, sweep: Path, keys: RaceKeys, metric: str, arms: Sequence[Arm], make: Make) -> None:
        self._sweep, self._keys, self._metric, self._make = sweep, keys, metric, make
        self._baseline, *self._lanes = [Lane(arm) for arm in arms]
        self._alpha = keys.alpha / len(self._lanes)
        self._outcomes: dict[Path, float | str] = {}
        self._halted, self._written = False, ""

    def refuse_another(self) -> None:
        """Refuse a folder that holds a race declared otherwise: its runs were stopped by other rules.

        Raises:
            UserError: naming what differs.
        """
        stored = mapping(read_json(self._sweep / RACE).get("declared"))
        declared = self._declared()
        differ = [name for name in declared if stored and stored.get(name) != declared[name]]
        if differ:
            name = differ[0]
            raise UserError(
                f"hydra.sweep.dir: the race in {self._sweep} was declared with {name} {shown(stored.get(name))}, and this one "
                f"has {shown(declared[name])}; give another hydra.sweep.dir, since rules that change after runs were seen "
                "prove nothing."
            )

    def _declared(self) -> dict[str, Any]:
        """Return what may not change once runs were seen; ``max_seeds`` may: an interval holds however long the race is."""
        names = ("alpha", "margin", "scale", "first_seed")
        arms = [list(lane.arm.overrides) for lane in (self._baseline, *self._lanes)]
        return {"metric": self._metric, "arms": arms} | {name: getattr(self._keys, name) for name in names}

    def begin(self) -> list[Job]:
        """Return the jobs that an earlier driver proposed: those whose folders are there."""
        jobs: list[Job] = []
        for lane in (self._baseline, *self._lanes):
            while len(lane.jobs) < self._keys.max_seeds:
                job = self._next(lane)
                if not (job.folder / SPEC).is_file():
                    break
                lane.jobs.append(job)
                jobs.append(job)
        return jobs

    def _next(self, lane: Lane) -> Job:
        return self._make(lane.arm.overrides, self._keys.first_seed + len(lane.jobs))

    def _open(self) -> list[Lane]:
        return [lane for lane in self._lanes if lane.said == "open"]

    def more(self, room: int) -> list[Job]:
        """Propose the smallest seeds that arms without a verdict still lack; the baseline runs each seed first."""
        if self._halted or not self._open():
            return []
        racing = [self._baseline, *self._open()]
        active = sum(job.folder not in self._outcomes for lane in racing for job in lane.jobs)
        jobs: list[Job] = []
        while len(jobs) < min(room, self._keys.n_jobs - active):
            lane = min(racing, key=lambda lane: len(lane.jobs))
            if len(lane.jobs) >= self._keys.max_seeds:
                break
            lane.jobs.append(self._next(lane))
            jobs.append(lane.jobs[-1])
        self._save()
        return jobs

    def watch(self, ended: Ended) -> tuple[list[Path], list[str]]:
        """Compare the pairs that are complete, and name the jobs of arms that need no more."""
        lines: list[str] = []
        waiting: set[Path] = set()
        for job in (job for lane in (self._baseline, *self._lanes) for job in lane.jobs):
            state = ended.get(job.folder)
            if state is not None and waits_for_a_person(state):
                waiting.add(job.folder)
            elif state is not None and job.folder not in self._outcomes:
                self._outcomes[job.folder] = self._outcome(job, state)
        for lane in self._open():
            self._compare(lane)
            if lane.said != "open":
                lines.append(described(lane, self._metric))
        needed = [self._baseline, *self._open()] if self._open() else []
        if not self._halted and any(job.folder in waiting for lane in needed for job in lane.jobs):
            self._halted = True
            lines.append("the race is paused until the same command is given again")
        over = [lane for lane in (self._baseline, *self._lanes) if lane not in needed]
        self._save()
        return [job.folder for lane in over for job in lane.jobs if job.folder not in ended], lines

    def _outcome(self, job: Job, state: JobState) -> float | str:
        """Return a run's value, or why it has none."""
        if state.name != "finished":
            return f"{job.folder.name}: {state.error or state.name}"
        value = number_of(state.final.get(self._metric))
        return value if math.isfinite(value) else f"{job.folder.name}: {self._metric} is not a number at the end"

    def _compare(self, lane: Lane) -> None:
        """Go on with an arm's sequence, seed by seed, until a verdict or a pair that is not complete."""
        while lane.said == "open":
            n = len(lane.differences)
            if n == self._keys.max_seeds:
                lane.said, lane.reason = "cannot tell", "hydra.sweeper.max_seeds allows no more pairs"
                if n > 1 and has_no_spread(lane.differences):
                    lane.reason = f"all {n} differences are equal, which says nothing about their spread"
                return
            pair = [
                self._outcomes.get(each.jobs[n].folder) if n < len(each.jobs) else None
                for each in (lane, self._baseline)
            ]
            broken = next((outcome for outcome in pair if isinstance(outcome, str)), None)
            if broken is not None:
                lane.said, lane.reason = "failed", broken
                return
            mine, base = pair
            if not isinstance(mine, float) or not isinstance(base, float):
                return
            lane.differences.append(mine - base)
            before = lane.intervals[-1] if lane.intervals else (-math.inf, math.inf)
            lane.intervals.append(narrowed(before, lane.differences, self._alpha, self._keys.scale))
            lane.said = verdict(*lane.intervals[-1], self._keys.margin)
            if lane.said == "contradiction":
                lane.said = "cannot tell"
                lane.reason = "its intervals do not meet: the differences are no draws of one normal law"

    def unfinished(self) -> bool:
        """True while an arm has no verdict and no job waits for a person."""
        return bool(self._open()) and not self._halted

    def headline(self) -> str:
        """Return how many arms have a verdict, and how many pairs the others have."""
        open_lanes = self._open()
        pairs = ", ".join(f"{lane.arm.name} {len(lane.differences)}" for lane in open_lanes[:4])
        return f"decided: {len(self._lanes) - len(open_lanes)} of {len(self._lanes)}" + (
            f", pairs: {pairs}" if pairs else ""
        )

    def _save(self) -> None:
        """Write ``race.json`` if it changed: what was declared, and every arm's sequence."""
        record = {
            "declared": self._declared(),
            "max_seeds": self._keys.max_seeds,
            "baseline": {"name": self._baseline.arm.name, "runs": len(self._baseline.jobs)},
            "arms": [recorded(lane) for lane in self._lanes],
        }
        if str(record) != self._written and self._sweep.is_dir():
            write_json(self._sweep / RACE, record)
            self._written = str(record)

    def close(self, ended: Ended) -> Closing:
        """Report every arm's verdict and what was spent; the exit code is 1 if an arm failed or the race waits for a person."""
        self._save()
        lanes = (self._baseline, *self._lanes)
        runs = sum(len(lane.jobs) for lane in lanes)
        lines = [described(lane, self._metric) for lane in self._lanes]
        lines.append(
            f"{runs} runs, of at most {len(lanes) * self._keys.max_seeds}; baseline: {self._baseline.arm.name}"
        )
        if self._halted:
            lines.append("the race is not over; the same command goes on with it")
        code = int(self._halted or any(lane.said == "failed" for lane in self._lanes))
        tags = {f"rlrt.race.{i}": f"{lane.arm.name}: {lane.said}" for i, lane in enumerate(self._lanes, 1)}
        return Closing(lines, code, tags | {"rlrt.race.metric": self._metric}, {"race/runs": float(runs)}, runs)


def described(lane: Lane, metric: str) -> str:
    """Say in a line how an arm stands."""
    n = len(lane.differences)
    why = f" ({lane.reason})" if lane.reason else ""
    if not n:
        return f"{lane.arm.name}: {lane.said} before the first pair{why}"
    low, high = lane.intervals[-1]
    mean = math.fsum(lane.differences) / n
    known = f"between {low:+.4f} and {high:+.4f}" if math.isfinite(low) else "no finite interval yet"
    return f"{lane.arm.name}: {lane.said} after {paired(n)}: {metric} {mean:+.4f}, {known}{why}"


def paired(count: int) -> str:
    """Return a number of pairs in words."""
    return f"{count} pair{'s' if count != 1 else ''}"


def recorded(lane: Lane) -> Mapping[str, Any]:
    """Return an arm for ``race.json``; ends that are infinite are null."""
    ends = [[end if math.isfinite(end) else None for end in interval] for interval in lane.intervals]
    return {
        "name": lane.arm.name,
        "overrides": list(lane.arm.overrides),
        "said": lane.said,
        "reason": lane.reason,
        "runs": len(lane.jobs),
        "differences": lane.differences,
        "intervals": ends,
    }


def arms_of(jobs: Sequence[Job]) -> list[Arm]:
    """Return the arms of a race's jobs; an arm is named by the overrides that not all of them share, as in the report."""
    common = set.intersection(*(set(job.overrides) for job in jobs))
    own = [[o for o in job.overrides if o not in common] for job in jobs]
    names = [" ".join(o.removeprefix("method=").removeprefix("experiment=") for o in each) or "default" for each in own]
    return [Arm(name, job.overrides) for name, job in zip(names, jobs, strict=True)]
