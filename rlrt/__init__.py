"""Experiments on token-level credit in RLVR: RLRT, its baselines, sweeps and honest comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def results(sweep: str | Path) -> Any:
    """Return the results of a sweep, or of one run, as a pandas DataFrame with one row for each job.

    Args:
        sweep: its folder, or its name below ``outputs/sweeps``.

    Raises:
        rlrt.errors.UserError: for a folder that holds no run.

    See ``rlrt.reporting.results`` for the columns, and for ``curves``.
    """
    from rlrt.reporting.results import results as read

    return read(sweep)


def curves(sweep: str | Path) -> Any:
    """Return the metrics of every step of every job as a pandas DataFrame; see ``results``."""
    from rlrt.reporting.results import curves as read

    return read(sweep)
