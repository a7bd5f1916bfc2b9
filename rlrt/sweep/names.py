"""A job's id and name on SLURM, by its ``job.json``: text that somebody else may have written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def slurm_id(spec: Mapping[str, Any]) -> str | None:
    """Return a job's SLURM id by its ``job.json``; None without one, and for a text that is none, as ``--signal``."""
    value = spec.get("slurm_id")
    return value if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}(_[0-9]{1,9})?", value) else None


def slurm_name(spec: Mapping[str, Any]) -> str | None:
    """Return the name under which a job was submitted to SLURM, by its ``job.json``; None for a text that is no such name."""
    value = spec.get("slurm_name")
    return value if isinstance(value, str) and re.fullmatch(r"rlrt-[A-Za-z0-9_.=-]{1,64}", value) else None


Submitted = tuple[str, str]
"""A job's id on SLURM, and the name under which it was submitted: an id alone may be another job's by now."""


def submitted(spec: Mapping[str, Any]) -> Submitted | None:
    """Return a job's id and name on SLURM; None for one that was not submitted, or whose ``job.json`` does not say both."""
    number, name = slurm_id(spec), slurm_name(spec)
    return None if number is None or name is None else (number, name)
