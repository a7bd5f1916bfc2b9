"""``python -m rlrt.report SWEEP``: finished jobs side by side, over seeds, with intervals; failed ones named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlrt.errors import UserError, nearest
from rlrt.folder import read_json
from rlrt.statistics import mean_and_halfwidth


@dataclass(frozen=True)
class Job:
    """One run of a sweep: what was typed apart from its seed, its seed, its state, its final numbers, and when it ended."""

    folder: Path
    label: str
    seed: int
    state: str
    final: Mapping[str, float]
    changed: float


def newest_only(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Each label and seed once, by its newest finished run (else its newest), and the runs left out.

    Two runs of one label and seed differ in code, versions or the content of model or data: they are no two samples.
    """
    kept: dict[tuple[str, int], Job] = {}
    for job in sorted(jobs, key=lambda j: (j.state == "finished", j.changed)):
        kept[job.label, job.seed] = job
    chosen = [job for job in jobs if kept[job.label, job.seed] is job]
    return chosen, [job for job in jobs if kept[job.label, job.seed] is not job]


def read_jobs(sweep: Path) -> list[Job]:
    """Every run below a folder, in the order of their labels and seeds.

    Raises:
        UserError: for a folder that holds no run.
    """
    jobs = []
    for file in sorted(sweep.glob("**/manifest.json")):
        manifest, summary = read_json(file), read_json(file.with_name("summary.json"))
        if not manifest or not isinstance(summary.get("final", {}), dict):
            jobs.append(Job(file.parent, "unreadable", 0, "its manifest.json or summary.json cannot be read", {}, 0.0))
            continue
        typed = [o for o in manifest.get("overrides", []) if o.split("=")[0] not in ("seed", "tracking", "threads")]
        label = " ".join(o.removeprefix("method=") for o in typed) or "default"
        seed, state = int(manifest.get("seed", 0)), str(summary.get("state", "unknown"))
        changed = float(summary.get("changed", 0.0))
        jobs.append(Job(file.parent, label, seed, state, summary.get("final", {}), changed))
    if not jobs:
        raise UserError(f"expected a folder with runs (manifest.json below it), found none in {sweep}.")
    return sorted(jobs, key=lambda job: (job.label, job.seed))


def interval(values: Sequence[float], form: str) -> str:
    """Mean and 95 % half-width (Student's t over seeds) as text."""
    mean, half = mean_and_halfwidth(values)
    unsigned = form.removeprefix("+")
    return f"{mean:{form}}" + (f" ± {half:{unsigned}}" if len(values) > 1 else "")


def columns_of(jobs: Sequence[Job]) -> list[tuple[str, str, str]]:
    """(heading, metric, format) of the table: the k of avg@k and pass@k is the jobs' own."""
    names = {name for job in jobs for name in job.final}
    ks = sorted(int(name.rsplit("_", 1)[1]) for name in names if name.startswith("eval/avg_at_"))
    columns = [("greedy", "eval/greedy", ".3f")]
    for k in ks:
        columns += [(f"avg@{k}", f"eval/avg_at_{k}", ".3f"), (f"pass@{k}", f"eval/pass_at_{k}", ".3f")]
    return [
        *columns,
        ("distinct", "eval/distinct_correct", ".2f"),
        ("entropy", "eval/entropy", ".3f"),
        ("length", "eval/length_mean", ".1f"),
    ]


def table(jobs: Sequence[Job]) -> str:
    """A Markdown table of all labels: seeds, and mean with interval of every column."""
    columns = columns_of(jobs)
    lines = ["| method | seeds | " + " | ".join(c[0] for c in columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for label in dict.fromkeys(job.label for job in jobs if job.label != "unreadable"):
        done = [j for j in jobs if j.label == label and j.state == "finished"]
        cells = [interval([j.final[name] for j in done], form) if done else "-" for _, name, form in columns]
        lines.append(f"| {label} | {len(done)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(jobs: Sequence[Job], baseline: str) -> str:
    """A Markdown table of paired differences to the baseline, over the seeds that both have.

    Raises:
        UserError: if there is no such label.
    """
    labels = list(dict.fromkeys(job.label for job in jobs))
    if baseline not in labels:
        raise UserError(f"--baseline: there is no {baseline!r} in this sweep.{nearest(baseline, labels)}")
    columns = columns_of(jobs)
    base = {j.seed: j.final for j in jobs if j.label == baseline and j.state == "finished"}
    lines = [
        f"| minus {baseline} | seeds | " + " | ".join(c[0] for c in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for label in labels:
        done = [j for j in jobs if j.label == label and j.state == "finished" and j.seed in base]
        if label == baseline or not done:
            continue
        cells = [interval([j.final[name] - base[j.seed][name] for j in done], "+" + form) for _, name, form in columns]
        lines.append(f"| {label} | {len(done)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(sweep: Path, baseline: str | None) -> str:
    """Both tables, and every job that did not finish."""
    jobs, repeated = newest_only(read_jobs(sweep))
    parts = [table(jobs)]
    if baseline is not None:
        parts.append(differences(jobs, baseline))
    missing = [f"- {j.folder.name}: {j.state}" for j in jobs if j.state != "finished"]
    if missing:
        parts.append("Not finished, and in no mean above:\n" + "\n".join(missing))
    if repeated:
        rows = "\n".join(f"- {j.folder.name}" for j in repeated)
        parts.append(f"Left out, since a newer run has the same settings and seed (other code or versions):\n{rows}")
    parts.append("Mean ± half-width of the 95 % interval by Student's t over seeds, final evaluation.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Print the report and write it into the sweep's folder as ``report.md``."""
    parser = argparse.ArgumentParser(prog="python -m rlrt.report", description=main.__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--baseline", help="label that the others are compared with, seed by seed")
    arguments = parser.parse_args()
    try:
        text = report(arguments.sweep, arguments.baseline)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(text, end="")
    (arguments.sweep / "report.md").write_text(text)


if __name__ == "__main__":
    main()
