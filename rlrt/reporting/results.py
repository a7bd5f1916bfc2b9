"""A sweep's results as pandas DataFrames: what a report reads, for notebooks and other programs.

``results`` has one row for each job, ``curves`` one for each step of each job. Both come from the same reader as the report, so
labels, states and final metrics are the report's. What lies in the folder is data: nothing of it is run or resolved.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlrt.errors import UserError
from rlrt.records.files import replace_bytes, replace_text
from rlrt.reporting.jobs import UNREADABLE, Job, newest_only, read_jobs

if TYPE_CHECKING:
    import pandas

SWEEPS = Path("outputs") / "sweeps"
"""Where a sweep's name is looked up."""
ABOUT = ("job", "label", "seed", "state", "in_means", "error")
"""The first columns of ``results``."""
WORDS = {"true": True, "false": False, "null": None}
"""Typed words that are no texts."""


def results(sweep: str | Path) -> pandas.DataFrame:
    """Return one row for each job of a sweep, begun or not, sorted by label and seed.

    Columns: ``job`` (the folder's name), ``label`` (what was typed for it and not for all), ``seed``, ``state`` (a reason for a
    folder that cannot be read), ``in_means`` (True if the report's means have it: finished, and the newest of its label and
    seed), ``error``; every key whose typed value differs between jobs, under its name (``method``, ``train.lr``); every final
    metric, under its name (``eval/greedy``), NaN for a job that has none.

    Args:
        sweep: a sweep's or a run's folder, or a sweep's name below ``outputs/sweeps``.

    Raises:
        UserError: for a folder that holds no run.
    """
    import pandas

    jobs = read_jobs(folder_of(sweep))
    frame = pandas.DataFrame(rows_of(jobs), columns=[*ABOUT, *varied(jobs), *metrics_of(jobs)])
    return frame.astype({"seed": "Int64"})  # a folder that cannot be read has none


def curves(sweep: str | Path) -> pandas.DataFrame:
    """Return one row for each recorded step of each job: ``job``, ``label``, ``seed``, ``step``, and every metric.

    Args, Raises: as ``results``.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    for job in read_jobs(folder_of(sweep)):
        about = {"job": job.name, "label": job.label, "seed": job.seed}
        for record in job.records():
            rows.append(about | record)
    names = dict.fromkeys(name for row in rows for name in row)
    first = ("job", "label", "seed", "step")
    return pandas.DataFrame(rows, columns=[*first, *sorted(name for name in names if name not in first)])


def folder_of(sweep: str | Path) -> Path:
    """Return a sweep's folder, given as such or by its name.

    Raises:
        UserError: for one that does not exist.
    """
    for folder in (Path(sweep).expanduser(), SWEEPS / sweep):
        if folder.is_dir():
            return folder
    raise UserError(
        f"expected the folder of a sweep or its name in {SWEEPS}, found neither {sweep} nor {SWEEPS / sweep}."
    )


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the rows of ``results``."""
    selected, _ = newest_only(jobs)
    counted = {job.folder for job in selected if job.finished}
    names = varied(jobs)
    rows = []
    for job in jobs:
        readable = job.label != UNREADABLE
        about = {
            "job": job.name,
            "label": job.label,
            "seed": job.seed if readable else None,
            "state": job.state,
            "in_means": job.folder in counted,
            "error": job.error,
        }
        typed = typed_of(job)
        rows.append(about | {name: typed.get(name, job.keys.get(name)) for name in names} | dict(job.final))
    return rows


def typed_of(job: Job) -> dict[str, Any]:
    """Return the keys and values that were typed for a job; a value that is a number, a bool or null is that, else its text."""
    return {key.lstrip("+~"): scalar(text) for key, _, text in (o.partition("=") for o in job.overrides)}


def scalar(text: str) -> Any:
    """Return a typed value as number, bool, None or text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return WORDS.get(text, text)


def varied(jobs: Sequence[Job]) -> list[str]:
    """Return the keys whose typed values differ between readable jobs, in the order in which they were typed; no seed, which
    has a column of its own."""
    every = [typed_of(job) for job in jobs if job.label != UNREADABLE]
    names = dict.fromkeys(name for typed in every for name in typed)
    return [name for name in names if name != "seed" and len({repr(typed.get(name)) for typed in every}) > 1]


def metrics_of(jobs: Sequence[Job]) -> list[str]:
    """Return the names of all final metrics, sorted."""
    return sorted({name for job in jobs for name in job.final})


def files(frames: Mapping[str, pandas.DataFrame], folder: Path) -> list[Path]:
    """Write each table as NAME.csv and NAME.parquet, and return the paths.

    A text in a CSV that a spreadsheet would take for a formula gets an apostrophe in front (``rlrt.reporting.tables.inert``).
    """
    from pandas.api.types import is_numeric_dtype, is_object_dtype

    from rlrt.reporting.tables import inert

    written = []
    for name, frame in frames.items():
        csv, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
        harmless = frame.rename(columns=inert)
        for column in [name for name in harmless if not is_numeric_dtype(harmless[name])]:
            harmless[column] = harmless[column].map(lambda cell: inert(cell) if isinstance(cell, str) else cell)
        replace_text(csv, harmless.to_csv(index=False))
        mixed = [name for name in frame if is_object_dtype(frame[name])]
        frame.astype(dict.fromkeys(mixed, "string")).to_parquet(binary := io.BytesIO(), index=False)
        replace_bytes(parquet, binary.getvalue())
        written += [csv, parquet]
    return written
