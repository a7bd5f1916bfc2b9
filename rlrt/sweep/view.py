"""What MLflow's page of runs is to show of a sweep: its runs in groups, their curves, and bars of where they ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.keys import leaves
from rlrt.records.files import mapping, read_json
from rlrt.records.jsonlines import is_number
from rlrt.records.mlflow import MlflowTracker
from rlrt.records.mlflow_words import accepted
from rlrt.reporting.tables import held_out
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import JobState, job_folders, last_records

CURVES = ("reward/mean", "policy/entropy", "rollout/length_mean", "rlrt/gap_mean")
"""Metrics drawn against the step, behind the held-out one."""
BARS = ("policy/entropy", "rollout/length_mean", "rlrt/gap_mean")
"""Metrics whose last value is drawn, behind the held-out one."""
SILENT = ("seed", "threads", "tracking", "origin", "resume", "trial")
"""Keys and sections of a config by which runs are not told apart."""
EVERY_S = 20.0
"""Seconds between two looks at the jobs of a sweep that runs."""


def groups_of(specs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return by what a sweep's runs are grouped: the method, and what else tells apart runs that differ by more than the seed.

    What was typed comes first (a coefficient), then the rest of the config (what an ``experiment`` brings with it).

    Args:
        specs: content of the ``job.json`` of every job.
    """
    configs = [{k: str(v) for k, v in leaves(dict(mapping(spec.get("plain")))).items()} for spec in specs]
    typed = [name.lstrip("+") for spec in specs for name in typed_of(spec)]
    every = dict.fromkeys([*typed, *(key for each in configs for key in each)])
    keys = [key for key in every if key.split(".")[0] not in SILENT and key != "method.name"]
    groups = [{"mode": "tag", "groupByData": "rlrt.method"}]
    places: list[tuple[str | None, ...]] = [(each.get("method.name"),) for each in configs]
    for group in ("model", "data"):  # tags say their options' names, parameters only what these hold
        options = [typed_of(spec).get(group) for spec in specs]
        if len(set(options)) > 1:
            finer = [(*place, option) for place, option in zip(places, options, strict=True)]
            groups, places = [*groups, {"mode": "tag", "groupByData": f"rlrt.{group}"}], finer
    parts = len(set(places))
    whole = len({tuple(each.get(key) for key in keys) + place[:1] for each, place in zip(configs, places, strict=True)})
    for key in keys:
        if parts >= whole:
            break
        finer = [(*place, each.get(key)) for place, each in zip(places, configs, strict=True)]
        if len(set(finer)) > parts:
            groups.append({"mode": "param", "groupByData": accepted(key)})
            places, parts = finer, len(set(finer))
    return groups


def typed_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return key and value of a job's overrides."""
    overrides = spec.get("overrides")
    pairs = (str(each).partition("=") for each in (overrides if isinstance(overrides, list) else []))
    return {key: value for key, _, value in pairs}


def state_of(specs: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> dict[str, Any] | None:
    """Return the state of the view of a sweep, without the filter that names its run; None while no run has a metric.

    Args:
        specs: content of the ``job.json`` of every job.
        metrics: names of the metrics that its runs have.
    """
    there = sorted(set(metrics))
    first = [name] if (name := held_out(there)) else []
    curves = [*first, *(name for name in CURVES if name in there)]
    bars = [*first, *(name for name in BARS if name in there)]
    if not curves:
        return None
    sections: list[dict[str, Any]] = [
        {"uuid": "curves", "name": "Learning curves", "display": True, "columns": 2, "cardHeight": 380},
        {"uuid": "bars", "name": "Last values", "display": True, "columns": 2, "cardHeight": 280},
    ]
    drawn = {accepted(name) for name in curves}
    rest = sorted({name.rpartition("/")[0] for name in map(accepted, there) if name not in drawn})
    sections += [{"uuid": f"of {name}", "name": name, "display": False} for name in rest]
    return {
        "orderByKey": "tags.`mlflow.runName`",  # by the time of start, the page would fetch the sweep's own run with its jobs
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "runListHidden": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": groups_of(specs)},
        "compareRunCharts": [*(chart("LINE", name) for name in curves), *(chart("BAR", name) for name in bars)],
        "compareRunSections": [section | {"isReordered": False} for section in sections],
        "isAccordionReordered": True,  # else the page sorts them by name
    }


def chart(kind: str, metric: str) -> dict[str, Any]:
    """Return a chart of MLflow's page, LINE or BAR, with the keys whose absence it does not forgive."""
    name, section = accepted(metric), {"LINE": "curves", "BAR": "bars"}[kind]
    common: dict[str, Any] = {"uuid": f"{section} {name}", "type": kind, "metricSectionId": section, "metricKey": name}
    common |= {"deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    if kind == "BAR":
        return common
    return common | {
        "selectedMetricKeys": [name],
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "lineSmoothness": 0,
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def names_of(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the names of the metrics in rows of a record."""
    return {str(name) for row in rows for name, value in row.items() if name != "step" and is_number(value)}


def send_view(sweep: Path, parent: MlflowTracker) -> None:
    """Queue the view of a sweep as its folder now says; nothing while no run has a metric."""
    folders, names = job_folders(sweep), set[str]()
    for folder in folders:
        names |= names_of([mapping(read_json(folder / "summary.json").get("final")), *last_records(folder)])
    state = state_of([read_json(folder / SPEC) for folder in folders], names)
    if state is not None:
        parent.view(sweep.name, state)


class LiveView:
    """Keeps the view of a sweep up to date while its jobs run.

    Args:
        sweep: the sweep's folder.
        parent: its run in MLflow; None: nothing is done.
    """

    def __init__(self, sweep: Path, parent: MlflowTracker | None) -> None:
        self._sweep, self._parent, self._due = sweep, parent, 0.0
        self._metrics: set[str] = set()
        self._read: set[Path] = set()  # jobs that ended
        self._sent: tuple[int, int] | None = None

    def follow(
        self,
        alive: Iterable[Path],
        ended: Mapping[Path, JobState],
        specs: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        """Look at the jobs now and then; queue the view again where there are more jobs or more metrics than before.

        Args:
            alive, ended: folders of the jobs.
            specs: gives the content of the ``job.json`` of every job.
        """
        if self._parent is None or self._parent.failed or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY_S
        unread = [folder for folder in ended if folder not in self._read]
        self._metrics |= names_of(ended[folder].final for folder in unread)
        self._metrics |= names_of(record for folder in [*alive, *unread] for record in last_records(folder))
        self._read.update(unread)
        known = specs()
        if not self._metrics or self._sent == (len(known), len(self._metrics)):
            return
        state = state_of(known, self._metrics)
        if state is not None:
            self._sent = (len(known), len(self._metrics))
            self._parent.view(self._sweep.name, state)
