"""What srun said of a job's tasks, where the job itself had no time left to say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrt.records.files import Unreadable, opened
from rlrt.records.printable import one_line
from rlrt.sweep.names import slurm_id

ENDS = re.compile(rb"^(?:srun: )?error: ([\w.-]{1,64}): (tasks? [0-9,-]{1,64}): ([^\r\n]{1,80})", re.MULTILINE)
"""srun's line about tasks that did not end by themselves: the node, the tasks, and how."""
CONSEQUENCE = (b"Terminated", b"Exited with exit code 143")
"""How tasks end that srun itself ends, since another one is gone."""
TAIL = 65536
"""Bytes at the end of a log that are read."""


def lost_task(folder: Path, spec: Mapping[str, Any]) -> str:
    """Return which task of a job on SLURM was lost, by srun's newest words in ``submitit/``; "" where it says nothing.

    Args:
        folder: the job's.
        spec: content of its ``job.json``.
    """
    number = slurm_id(spec)
    if number is None:
        return ""
    file = folder.parent / "submitit" / f"{number}_0_log.out"
    try:
        with opened(file) as handle:
            handle.seek(max(0, handle.seek(0, 2) - TAIL))
            found = [m.groups() for m in ENDS.finditer(handle.read(TAIL))]
    except (OSError, Unreadable):
        return ""
    causes = [m for m in found if not m[2].startswith(CONSEQUENCE)]
    if not causes:
        return ""
    node, tasks, how = (one_line(part.decode("utf-8", "replace"), 80) for part in causes[-1])
    return f"{tasks} of the job ended on {node}: {how} (submitit/{file.name})"
