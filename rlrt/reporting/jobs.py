"""The jobs of a sweep as a report reads them, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.records.files import read_json
from rlrt.records.jsonlines import JsonLines
from rlrt.records.stored_config import stored_config

UNREADABLE = "unreadable"
SILENT = ("seed", "tracking", "threads")
"""Beginnings of overrides that tell no two settings apart."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        folder: its folder.
        label: what was typed, apart from its seed.
        seed: its seed.
        state: of its summary; ``queued`` for one that has not begun.
        final: its last numbers.
        changed: when it ended (seconds since 1970).
        error: what a failed one said.
        keys: ``section.key`` and value of its config, where it has one.
    """

    folder: Path
    label: str
    seed: int
    state: str
    final: Mapping[str, float]
    changed: float
    error: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether its numbers may enter a mean."""
        return self.state == "finished"

    def records(self) -> list[dict[str, Any]]:
        """Its metrics, step by step."""
        return JsonLines(self.folder / "metrics.jsonl").read()


def newest_only(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Each label and seed once, by its newest finished run (else its newest), and the runs left out.

    Two runs of one label and seed differ in code, versions or the content of model or data: they are no two samples.
    """
    kept: dict[tuple[str, int], Job] = {}
    for job in sorted(jobs, key=lambda j: (j.finished, j.changed)):
        kept[job.label, job.seed] = job
    chosen = [job for job in jobs if kept[job.label, job.seed] is job]
    return chosen, [job for job in jobs if kept[job.label, job.seed] is not job]


def read_jobs(sweep: Path) -> list[Job]:
    """Every run below a folder, begun or not, in the order of their labels and seeds.

    Raises:
        UserError: for a folder that holds no run.
    """
    folders = {f.parent for name in ("manifest.json", "job.json") for f in sweep.glob(f"**/{name}")}
    jobs = [read_job(folder) for folder in sorted(folders)]
    if not jobs:
        raise UserError(f"expected a folder with runs (manifest.json below it), found none in {sweep}.")
    words = [set(job.label.split(" ")) for job in jobs if job.label != UNREADABLE]
    if len({job.label for job in jobs}) > 1 and words:  # what all jobs share tells nothing
        common = set.intersection(*words)
        jobs = [relabelled(job, common) for job in jobs]
    return sorted(jobs, key=lambda job: (job.label, job.seed))


def relabelled(job: Job, common: set[str]) -> Job:
    """A job whose label lacks what all jobs share."""
    words = [w for w in job.label.split(" ") if w not in common]
    return replace(job, label=" ".join(words) or "default")


def read_job(folder: Path) -> Job:
    """One run's papers."""
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
    """A run from its papers; what they hold is not checked here."""
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
    )


def keys_of(folder: Path) -> dict[str, Any]:
    """``section.key`` and value of a run's config; {} where there is none yet.

    Raises:
        UserError: for a config that cannot be read.
    """
    plain = stored_config(folder) if (folder / "config.yaml").is_file() else {}
    return {k: v for k, v in leaves(plain).items() if k.count(".") == 1 and not isinstance(v, list)}


def labels_of(jobs: Sequence[Job]) -> list[str]:
    """The labels of a sweep, each once."""
    return [label for label in dict.fromkeys(job.label for job in jobs) if label != UNREADABLE]


def finished(jobs: Sequence[Job], label: str) -> list[Job]:
    """The runs of a label that count."""
    return [job for job in jobs if job.label == label and job.finished]
