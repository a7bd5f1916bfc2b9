"""Seconds that earlier runs here took: the rates of a forecast that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.records.files import Unreadable, mapping, read_json
from rlrt.records.jsonlines import JsonLines, is_number
from rlrt.records.stored_config import stored_config

LIKE = {
    "train": ("prompts_per_step", "rollouts_per_prompt", "minibatches", "max_refills", "sample_ahead"),
    "engine": ("_target_", "max_new_tokens"),
    "model": ("lora", "gradient_checkpointing"),
}
"""Keys on which the seconds of a step depend most: a run with other values is not counted."""
NEWEST = 20
"""Runs that are read, the newest first."""
EVALUATED = ("samples_per_prompt", "prompts")
"""Keys of ``eval`` on which the seconds of an evaluation depend most."""


@dataclass(frozen=True)
class Earlier:
    """Seconds of earlier runs: medians, and the slowest step.

    Attributes:
        step_s: seconds of a step, its evaluation taken off.
        slowest_s: seconds of the slowest step, its evaluation taken off.
        evaluation_s: seconds of an evaluation; None if no run has one like it.
        probe_s: seconds of a probe of the teacher; None if no run has one.
        steps, runs: how many were counted.
    """

    step_s: float
    slowest_s: float
    evaluation_s: float | None
    probe_s: float | None
    steps: int
    runs: int


def earlier(settings: Settings, processes: int, kind: str, outputs: Path = Path("outputs")) -> Earlier | None:
    """Return the seconds of earlier runs of this method and model in ``outputs``; None if there are none.

    A run counts if it had the same choices of method, model and data, the same values of ``LIKE``, as many processes, and GPUs
    if this one gets them. What cannot be read is left out.

    Args:
        processes: number of the run's processes.
        kind: cpu or cuda.
    """
    found = [*outputs.glob("runs/*/manifest.json"), *outputs.glob("sweeps/*/*/manifest.json")]
    steps: list[float] = []
    evaluated: list[float] = []
    probed: list[float] = []
    runs = 0
    for manifest in sorted(found, key=modified, reverse=True):
        if runs == NEWEST:
            break
        if not same_choices(settings, read_json(manifest), processes):
            continue
        config = config_of(manifest.parent)
        if on_gpu(read_json(manifest), config) != (kind == "cuda") or not alike(settings.plain, config, LIKE):
            continue
        try:
            records = JsonLines(manifest.parent / "metrics.jsonl").read()
        except Unreadable:
            continue
        rows = [r for r in records if seconds(r, "time/step_s") > 0]
        runs += bool(rows)
        steps += [seconds(r, "time/step_s") - seconds(r, "time/evaluation_s") for r in rows]
        if alike(settings.plain, config, {"teacher": ("probe_prompts",)}):
            probed += [took for r in records if (took := seconds(r, "time/probe_s"))]
        if alike(settings.plain, config, {"eval": EVALUATED}):
            evaluated += [took for r in rows if (took := seconds(r, "time/evaluation_s"))]
    if not steps:
        return None
    evaluation_s, probe_s = (statistics.median(found) if found else None for found in (evaluated, probed))
    return Earlier(statistics.median(steps), max(steps), evaluation_s, probe_s, len(steps), runs)


def modified(file: Path) -> float:
    """Return when a file was written, in seconds; 0 if it is gone."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def seconds(record: Any, name: str) -> float:
    """Return a number of a record; 0 if it has none."""
    value = mapping(record).get(name)
    return float(value) if is_number(value) else 0.0


def config_of(folder: Path) -> dict[str, Any]:
    """Return a run's stored config; {} if it cannot be read."""
    try:
        return stored_config(folder)
    except UserError:
        return {}


def same_choices(settings: Settings, manifest: Mapping[str, Any], processes: int) -> bool:
    """True if a run had this method, model, data and number of processes."""
    choices = mapping(manifest.get("choices"))
    same = all(choices.get(name) == settings.names.get(name) for name in ("method", "model", "data"))
    return same and manifest.get("processes", 1) == processes


def on_gpu(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """True if a run computed on a GPU."""
    return bool(mapping(manifest.get("hardware")).get("gpus")) and config.get("device") != "cpu"


def alike(plain: Mapping[str, Any], other: Mapping[str, Any], keys: Mapping[str, tuple[str, ...]]) -> bool:
    """True if two configs have the same values of some keys."""
    return all(
        name in mapping(other.get(section)) and other[section][name] == mapping(plain.get(section)).get(name)
        for section, names in keys.items()
        for name in names
    )
