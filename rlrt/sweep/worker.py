"""What runs inside a job's process: one run, from ``job.json`` to its summary. Called by submitit, here or on a node."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.folder import RunFolder, read_json
from rlrt.stop import StopFlag
from rlrt.sweep.lease import Held, hold
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import LEASE

log = logging.getLogger("rlrt")


def run(folder: str) -> str:
    """Run, or go on with, the job of a folder.

    Never raises for what happens inside the run: the folder's ``summary.json`` tells it (state, kind of failure, one line),
    and ``log.txt`` has the traceback.

    Returns:
        the job's state.
    """
    path = Path(folder)
    try:
        with hold(path / LEASE):
            return _run(path)
    except Held:
        return "running"


def _run(path: Path) -> str:
    from rlrt.build import execute
    from rlrt.config.load import load

    handler = logging.FileHandler(path / "log.txt")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    spec, place = read_json(path / SPEC), RunFolder(path)
    try:
        with StopFlag() as stop:
            settings = load(spec["plain"], spec["choices"], spec["overrides"])
            left = leave_sqlite_to_the_driver(settings.tracking)
            summary = execute(settings, path, log.info, stop.requested, spec.get("tags", {}), progress=False)
        if left:
            place.set_state(str(summary["state"]), mlflow_complete=False)
        if summary["state"] == "interrupted" and stop.signal == signal.SIGUSR2:
            requeue()
        return str(summary["state"])
    except UserError as error:
        place.set_state("failed", failure="config", error=str(error))
        log.error("%s", error)
    except Exception as error:
        kind = "memory" if is_out_of_memory(error) else "error"
        place.set_state("failed", failure=kind, error=f"{type(error).__name__}: {error}")
        log.exception("the run failed")
    finally:
        log.removeHandler(handler)
        handler.close()
    return "failed"


def leave_sqlite_to_the_driver(tracking: Any) -> bool:
    """On SLURM a SQLite file may lie where nodes share it, which is unsafe: jobs write their record alone.

    Returns:
        whether the driver, or ``rlrt.sync``, must bring the run to MLflow.
    """
    if os.environ.get("SLURM_JOB_ID") and str(tracking.uri).startswith("sqlite:"):
        tracking.uri = None
        return True
    return False


def requeue() -> None:
    """Ask SLURM to queue this job again, after its signal before the time limit; here on one machine, do nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        log.info("requeued as %s %s", job, done.stderr.strip())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on a GPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
