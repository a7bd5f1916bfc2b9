"""What a disturbed sweep left, beside an undisturbed one: nothing lost, nothing twice, everything equal to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.kills.lives import differences, fingerprint


def jobs_of(sweep: Path) -> dict[str, Path]:
    """Jobs of a sweep by the names of their folders, which follow from what is to be run."""
    return {spec.parent.name: spec.parent for spec in sorted(sweep.glob("*/job.json"))}


def faults(sweep: Path, calm: Path, store: Path) -> list[str]:
    """What is wrong with a sweep that ended well; nothing, if it is as the undisturbed one.

    Args:
        sweep: its folder.
        calm: folder of the undisturbed sweep.
        store: SQLite file of the MLflow server; the sweep's experiment there has the name of its folder.
    """
    mine, theirs = jobs_of(sweep), jobs_of(calm)
    found = [f"{name}: the job is not there" for name in theirs.keys() - mine.keys()]
    found += [f"{name}: nobody asked for this job" for name in mine.keys() - theirs.keys()]
    for name in sorted(mine.keys() & theirs.keys()):
        found += [f"{name}: {fault}" for fault in of_job(mine[name], theirs[name])]
    found += of_mlflow(sweep, mine, store)
    if (calm / "study.journal").exists():
        found += of_search(sweep, calm)
    return found


def of_job(job: Path, calm: Path) -> Iterable[str]:
    """Record, samples, summary, and every file of every checkpoint; and what should not lie about."""
    try:
        yield from (f"{part} differs" for part in differences(fingerprint(calm), fingerprint(job)))
    except (OSError, ValueError, KeyError) as error:
        yield f"cannot be compared: {error!r}"
    if left := [p.name for p in (job / "checkpoints").glob("*") if not p.name.removeprefix("step_").isdigit()]:
        yield f"left behind: {', '.join(left)}"


def of_mlflow(sweep: Path, jobs: dict[str, Path], store: Path) -> Iterable[str]:
    """One run for the sweep and one for each job, whose values are the record's, each once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name(sweep.name)
    if experiment is None:
        yield f"MLflow has no experiment {sweep.name}"
        return
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_id = {run.info.run_id: run for run in runs}
    if len(runs) != len(jobs) + 1:
        yield f"MLflow has {len(runs)} runs for {len(jobs)} jobs and one sweep"
    for name, job in jobs.items():
        run = by_id.get(json.loads((job / "manifest.json").read_text()).get("mlflow_run_id", ""))
        if run is None:
            yield f"{name}: MLflow does not have its run"
            continue
        if run.info.status != "FINISHED":
            yield f"{name}: MLflow calls its run {run.info.status}"
        for metric, values in record(job).items():
            history = client.get_metric_history(run.info.run_id, metric)
            if sorted(m.step for m in history) != sorted(values):
                yield f"{name}: MLflow's steps of {metric} are {sorted(m.step for m in history)}, not {sorted(values)}"
            elif any(m.value != values[m.step] for m in history):
                yield f"{name}: MLflow has other values of {metric}"


def record(job: Path) -> dict[str, dict[int, float]]:
    """Values of a record by metric and step, without those by the clock."""
    found: dict[str, dict[int, float]] = {}
    for line in (job / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step" and not name.startswith("time/") and isinstance(value, int | float):
                found.setdefault(name, {})[row["step"]] = float(value)
    return found


def of_search(sweep: Path, calm: Path) -> Iterable[str]:
    """Every point has the value that it has without disturbance; none is still said to run."""
    mine, theirs = trials(sweep), trials(calm)
    values = {point: {v for s, v in told if s == "COMPLETE"} for point, told in mine.items()}
    for point, told in theirs.items():
        (expected,) = {v for s, v in told if s == "COMPLETE"}
        if values.get(point) != {expected}:
            yield f"the search has {values.get(point)} for {point}, not {expected}"
    if running := [point for point, told in mine.items() if "RUNNING" in {s for s, _ in told}]:
        yield f"trials of {running} are said to run"


def trials(sweep: Path) -> dict[str, list[tuple[str, Any]]]:
    """State and value of every trial of a search, by its parameters."""
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(sweep / "study.journal")))
    (summary,) = storage.get_all_studies()
    found: dict[str, list[tuple[str, Any]]] = {}
    for trial in load_study(study_name=summary.study_name, storage=storage).trials:
        point = ", ".join(f"{k}={v}" for k, v in sorted(trial.params.items()))
        found.setdefault(point, []).append((trial.state.name, trial.value))
    return found
