"""The jobs of a sweep as a report reads them, and the selection of the jobs that enter its means."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.records.declared import Declared, declared, is_text
from rlrt.records.files import Unreadable, closed_folders, folders_with, json_object, named_below
from rlrt.records.jsonlines import LONGEST, JsonLines, is_number, numbers_of
from rlrt.records.killed import is_gone, why_gone
from rlrt.records.printable import one_line
from rlrt.records.secrets import redacted
from rlrt.records.stored_config import stored_config

UNREADABLE = "unreadable"
LONGEST_LABEL = 500
"""Characters of a label."""
LONGEST_NAME = 200
"""Characters of a folder's name and of a state."""
LAST_TIME_S = 32_503_680_000.0
"""The year 3000, in seconds since 1970: a later time is none."""
SILENT = ("seed", "tracking", "threads", "origin")
"""Overrides with these prefixes are not part of a job's label."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        folder: its folder; ``name`` is how it is called.
        label: its overrides without the seed.
        seed: its seed.
        state: state in its summary; ``queued`` if it has not begun; ``lost`` if it was running and its process is gone.
        final: its final metrics.
        changed: when it ended (seconds since 1970).
        error: error message of a failed run.
        keys: ``section.key`` and value of its config, where it has one.
        declared: curves, ablations and tags that its method declared.
        overrides: what was typed for it, as ``key=value``.
    """

    folder: Path
    label: str
    seed: int
    state: str
    final: Mapping[str, float]
    changed: float
    error: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)
    declared: Declared = field(default_factory=Declared)
    overrides: Sequence[str] = ()

    @property
    def finished(self) -> bool:
        """True if its metrics may enter a mean."""
        return self.state == "finished"

    @property
    def name(self) -> str:
        """The name of its folder, on one line."""
        return one_line(self.folder.name, LONGEST_NAME)

    def records(self) -> list[dict[str, Any]]:
        """Read its metrics, one record of finite numbers per step; [] for a record that cannot be read."""
        try:
            return [numbers_of(record) for record in JsonLines(self.folder / "metrics.jsonl").read()]
        except Unreadable:
            return []

    def rollouts(self) -> list[dict[str, Any]]:
        """Read its newest stored rollouts, those of one step; [] if there are none, or they cannot be read."""
        try:
            rows = JsonLines(self.folder / "samples.jsonl").last(LONGEST)
        except Unreadable:
            return []
        return [row for row in rows if row["step"] == rows[-1]["step"]]


def newest_only(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Return the newest finished run (else the newest run) of each label and seed, and the runs not used.

    Two runs of one label and seed differ in code, versions, or the content of model or data, so they are not two samples.
    """
    newest: dict[tuple[str, int], Job] = {}
    for job in sorted(jobs, key=lambda j: (j.finished, j.changed)):
        newest[job.label, job.seed] = job
    selected = [job for job in jobs if newest[job.label, job.seed] is job]
    return selected, [job for job in jobs if newest[job.label, job.seed] is not job]


def read_jobs(sweep: Path) -> list[Job]:
    """Read every run below a folder, begun or not, sorted by label and seed.

    Raises:
        UserError: for a folder that holds no run.
    """
    folders = {f.parent for f in named_below(sweep, "manifest.json", "job.json")}
    folders |= {*folders_with(sweep, "manifest.json"), *folders_with(sweep, "job.json"), *closed_folders(sweep)}
    jobs = [read_job(folder) for folder in sorted(folders)]
    if not jobs:
        raise UserError(f"expected a folder with runs (manifest.json below it), found none in {sweep}.")
    labels = [set(job.label.split(" ")) for job in jobs if job.label != UNREADABLE]
    if len(set(map(frozenset, labels))) > 1:  # overrides that all jobs share distinguish none
        common = set.intersection(*labels)
        jobs = [relabelled(job, common) for job in jobs]
    return sorted(jobs, key=lambda job: (job.label, job.seed))


def relabelled(job: Job, common: set[str]) -> Job:
    """Remove the overrides that all jobs share from a job's label."""
    overrides = [o for o in job.label.split(" ") if o not in common]
    return replace(job, label=" ".join(overrides) or "default")


def read_job(folder: Path) -> Job:
    """Read one run from its folder; a run that cannot be read gets the label ``unreadable``."""
    try:
        manifest, summary, spec = (json_object(folder / n) for n in ("manifest.json", "summary.json", "job.json"))
        for name in ("metrics.jsonl", "samples.jsonl"):
            JsonLines(folder / name).check()
        return job_of(folder, manifest, summary, spec)
    except UserError as error:
        return Job(folder, UNREADABLE, 0, one_line(error), {}, 0.0)
    except (AttributeError, TypeError, ValueError, OverflowError):
        wrong = f"{folder}: its manifest.json, summary.json or job.json holds values of a wrong kind"
        return Job(folder, UNREADABLE, 0, one_line(wrong), {}, 0.0)


def job_of(folder: Path, manifest: Mapping[str, Any], summary: Mapping[str, Any], spec: Mapping[str, Any]) -> Job:
    """Build a run from its manifest, summary and ``job.json``; values of a wrong type raise."""
    overrides = redacted(manifest.get("overrides", spec.get("overrides", [])))  # job.json holds them as they were typed
    typed = [o for o in overrides if o.split("=")[0].split(".")[0] not in SILENT and not o.startswith("+sweep=")]
    label = short_label(" ".join(o.removeprefix("method=").removeprefix("experiment=") for o in typed) or "default")
    seed = manifest.get("seed", spec.get("plain", {}).get("seed", 0))
    gone = is_gone(folder, summary)
    return Job(
        folder=folder,
        label=label,
        seed=int(seed),
        state="lost" if gone else one_line(summary.get("state", "queued"), LONGEST_NAME),
        final={k: v for k, v in summary.get("final", {}).items() if is_number(v) and is_text(k)},
        changed=min(float(summary.get("changed", 0.0)), LAST_TIME_S),
        error=why_gone(summary) if gone else one_line(summary.get("error", "")),
        keys=keys_of(folder),
        declared=declared(manifest),
        overrides=[str(o) for o in overrides],
    )


def short_label(text: str) -> str:
    """Return a label on one line; of a long one the beginning, and a digest that tells it from others of that beginning."""
    line = one_line(text, len(text))
    if len(line) <= LONGEST_LABEL:
        return line
    return f"{line[:LONGEST_LABEL]}... {hashlib.sha256(line.encode()).hexdigest()[:8]}"


def keys_of(folder: Path) -> dict[str, Any]:
    """Return ``section.key`` and value of a run's config; {} if it has none yet.

    Raises:
        UserError: for a config that cannot be read.
    """
    plain = stored_config(folder) if os.path.lexists(folder / "config.yaml") else {}
    return {k: v for k, v in leaves(plain).items() if k.count(".") == 1 and not isinstance(v, list)}


def labels_of(jobs: Sequence[Job]) -> list[str]:
    """Return the distinct labels of a sweep."""
    return [label for label in dict.fromkeys(job.label for job in jobs) if label != UNREADABLE]


def finished(jobs: Sequence[Job], label: str) -> list[Job]:
    """Return the finished runs of a label."""
    return [job for job in jobs if job.label == label and job.finished]
