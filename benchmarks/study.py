"""The raw numbers of a study's runs, small enough for the repository, and tables that are computed from them alone.

    python -m benchmarks.study rows SWEEP >> docs/study/NAME.jsonl
    python -m benchmarks.study table docs/study/NAME.jsonl --baseline LABEL --metric eval/avg_at_8

A row is a finished run: what was typed for it, its commit, its evaluations by step (the first and the last whole, of those
between them accuracy and families) and its training reward, the mean of each ten steps. With ``--known FILE`` a run that is in
that file (by its identity) is left out. A table has each label's mean of a metric at its last evaluation, and its difference
from the baseline over the seeds that both have, with Student's 95 % interval; ``--only TEXT``: of labels with this text.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.refused import guarded
from rlrt.errors import UserError
from rlrt.records.files import read_json
from rlrt.reporting.jobs import Job, read_jobs
from rlrt.reporting.tables import Table, interval

TENTH = 10
"""Steps of one mean of the training reward."""
BETWEEN = re.compile(r"eval/(.*/)?(avg_at_\d+|distinct_families)")
"""What is kept of the evaluations between the first and the last."""


def row_of(job: Job) -> dict[str, Any]:
    """A finished run as it is stored."""
    manifest, records = read_json(job.folder / "manifest.json"), job.records()
    rewards = [r["reward/mean"] for r in records if "reward/mean" in r]
    evaluations = [r for r in records if "eval/greedy" in r]
    ends = (evaluations[0]["step"], evaluations[-1]["step"])
    tenths = [rewards[i : i + TENTH] for i in range(0, len(rewards), TENTH)]
    return {
        "identity": manifest["identity"],
        "commit": str(manifest.get("git_commit", "unknown"))[:7],
        "label": job.label,
        "seed": job.seed,
        "overrides": list(job.overrides),
        "evaluations": {
            str(int(r["step"])): {
                k: round(v, 4)
                for k, v in r.items()
                if k.startswith("eval/") and (r["step"] in ends or BETWEEN.fullmatch(k))
            }
            for r in evaluations
        },
        "reward": [round(sum(part) / len(part), 4) for part in tenths],
    }


def rows(sweep: Path, known: Path | None) -> Iterator[str]:
    """The rows of a sweep's finished runs, without those that a file has already."""
    had = {row["identity"] for row in read(known)} if known is not None else set()
    for job in read_jobs(sweep):
        if job.finished and (row := row_of(job))["identity"] not in had:
            yield json.dumps(row)


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file.

    Raises:
        UserError: for a file that is not there.
    """
    if not file.is_file():
        raise UserError(f"expected a file of rows (python -m benchmarks.study rows SWEEP), found none at {file}.")
    return [json.loads(line) for line in file.read_text().splitlines()]


def last(row: Mapping[str, Any], metric: str) -> float | None:
    """A metric at the last evaluation of a run; None where it has none of that name."""
    value: float | None = row["evaluations"][max(row["evaluations"], key=int)].get(metric)
    return value


def table(found: Sequence[Mapping[str, Any]], baseline: str, metric: str) -> str:
    """A Markdown table: mean and difference from the baseline, in seeds that both have.

    Raises:
        UserError: for a baseline or a metric that no run has.
    """
    values: dict[str, dict[int, float]] = {}
    for row in found:
        if (value := last(row, metric)) is not None:
            values.setdefault(row["label"], {})[row["seed"]] = value
    if not values:
        raise UserError(f"--metric: expected one of the last evaluations' metrics, got {metric}, which no run has.")
    if baseline not in values:
        raise UserError(f"--baseline: expected one of {', '.join(sorted(values))}, got {baseline}.")
    lines = []
    for label, mine in values.items():
        gaps = [mine[seed] - values[baseline][seed] for seed in mine.keys() & values[baseline].keys()]
        difference = "" if label == baseline or not gaps else interval(gaps, "+.3f")
        lines.append([label, str(len(mine)), interval(list(mine.values()), ".3f"), difference, str(len(gaps))])
    return Table([metric, "runs", "mean", f"less {baseline}", "pairs"], lines).markdown()


def main() -> None:
    """Print rows or a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=main.__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    taken = kinds.add_parser("rows")
    taken.add_argument("sweep", type=Path)
    taken.add_argument("--known", type=Path, default=None, help="file whose runs are left out")
    shown = kinds.add_parser("table")
    shown.add_argument("file", type=Path)
    shown.add_argument("--baseline", required=True)
    shown.add_argument("--metric", action="append", required=True)
    shown.add_argument("--only", default="", help="text that the labels hold")
    arguments = parser.parse_args()
    if arguments.kind == "rows":
        for line in rows(arguments.sweep, arguments.known):
            print(line)
    else:
        found = [row for row in read(arguments.file) if arguments.only in row["label"]]
        for metric in arguments.metric:
            print(table(found, arguments.baseline, metric) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
