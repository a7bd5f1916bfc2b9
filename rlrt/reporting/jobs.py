"""The jobs of a sweep as a report reads them, and the selection of the jobs that enter its means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.records.declared import Declared, declared
from rlrt.records.files import read_json
from rlrt.records.jsonlines import JsonLines
from rlrt.records.stored_config import stored_config

UNREADABLE = "unreadable"
SILENT = ("seed", "tracking", "threads", "origin")
"""Overrides with these prefixes are not part of a job's label."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        folder: its folder.
        label: its overrides without the seed.
        seed: its seed.
        state: state in its summary; ``queued`` if it has not begun.
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

    def records(self) -> list[dict[str, Any]]:
        """Read its metrics, one record per step."""
        return JsonLines(self.folder / "metrics.jsonl").read()


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
    folders = {f.parent for name in ("manifest.json", "job.json") for f in sweep.glob(f"**/{name}")}
    jobs = [read_job(folder) for folder in sorted(folders)]
    if not jobs:
        raise UserError(f"expected a folder with runs (manifest.json below it), found none in {sweep}.")
    labels = [set(job.label.split(" ")) for job in jobs if job.label != UNREADABLE]
    if len({job.label for job in jobs}) > 1 and labels:  # overrides that all jobs share distinguish none
        common = set.intersection(*labels)
        jobs = [relabelled(job, common) for job in jobs]
    return sorted(jobs, key=lambda job: (job.label, job.seed))


def relabelled(job: Job, common: set[str]) -> Job:
    """Remove the overrides that all jobs share from a job's label."""
    overrides = [o for o in job.label.split(" ") if o not in common]
    return replace(job, label=" ".join(overrides) or "default")


def read_job(folder: Path) -> Job:
    """Read one run from its folder; a run that cannot be read gets the label ``unreadable``."""
    manifest, summary, spec = (read_json(folder / n) for n in ("manifest.json", "summary.json", "job.json"))
    begun = (folder / "manifest.json").is_file()
    if (begun and not manifest) or not isinstance(summary.get("final", {}), dict):
        return Job(folder, UNREADABLE, 0, "its manifest.json or summary.json cannot be read", {}, 0.0)
    try:
        return job_of(folder, manifest, summary, spec)
    except UserError as error:
        return Job(folder, UNREADABLE, 0, str(error), {}, 0.0)
    except (AttributeError, TypeError, ValueError):
        return Job(
            folder, UNREADABLE, 0, "its manifest.json, summary.json or job.json holds values of a wrong kind", {}, 0.0
        )


def job_of(folder: Path, manifest: Mapping[str, Any], summary: Mapping[str, Any], spec: Mapping[str, Any]) -> Job:
    """Build a run from its manifest, summary and ``job.json``; values of a wrong type raise."""
    overrides = manifest.get("overrides", spec.get("overrides", []))
    typed = [o for o in overrides if o.split("=")[0].split(".")[0] not in SILENT and not o.startswith("+sweep=")]
    label = " ".join(o.removeprefix("method=").removeprefix("experiment=") for o in typed) or "default"
    seed = manifest.get("seed", spec.get("plain", {}).get("seed", 0))
    return Job(
        folder=folder,
        label=label,
        seed=int(seed),
        state=str(summary.get("state", "queued")),
        final={k: v for k, v in summary.get("final", {}).items() if isinstance(v, (int, float))},
        changed=float(summary.get("changed", 0.0)),
        error=str(summary.get("error", "")),
        keys=keys_of(folder),
        declared=declared(manifest),
        overrides=[str(o) for o in overrides],
    )


def keys_of(folder: Path) -> dict[str, Any]:
    """Return ``section.key`` and value of a run's config; {} if it has none yet.

    Raises:
        UserError: for a config that cannot be read.
    """
    plain = stored_config(folder) if (folder / "config.yaml").is_file() else {}
    return {k: v for k, v in leaves(plain).items() if k.count(".") == 1 and not isinstance(v, list)}


def labels_of(jobs: Sequence[Job]) -> list[str]:
    """Return the distinct labels of a sweep."""
    return [label for label in dict.fromkeys(job.label for job in jobs) if label != UNREADABLE]


def finished(jobs: Sequence[Job], label: str) -> list[Job]:
    """Return the finished runs of a label."""
    return [job for job in jobs if job.label == label and job.finished]
