"""What runs inside a job's process: one run, from ``job.json`` to its summary. Called by submitit, here or on a node."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlrt.distributed.rank import EXIT, is_main
from rlrt.errors import DiskFull, RankLost, UserError
from rlrt.execution.stop import StopFlag
from rlrt.records.files import or_logged, read_json
from rlrt.records.folder import RunFolder
from rlrt.records.identity import identity
from rlrt.records.lease import LEASE, Held, hold, slurm_job
from rlrt.records.secrets import MaskingFormatter
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import DONE

log = logging.getLogger("rlrt")
FIRST_PORT, PORTS = 15_000, 17_000
"""Ports at which the tasks of a SLURM job meet: below those that Linux gives to outgoing connections."""


def run(folder: str) -> str:
    """Run, or go on with, the job of a folder; where a job has several tasks, each of them calls this.

    Never raises for what happens inside the run: the folder's ``summary.json`` tells it (state, kind of failure, one line),
    and ``log.txt`` has the traceback.

    Returns:
        the job's state.
    """
    path = Path(folder)
    meet()
    try:
        with StopFlag() as stop, hold(path / LEASE) if is_main() else contextlib.nullcontext():
            return _run(path, stop)  # nothing slow came before: a signal from now on is heard
    except Held:
        return "running"


def meet() -> None:
    """Set torchrun's variables from what submitit knows of a job's tasks, on SLURM from SLURM's own variables.

    The tasks meet at the first node, at a port that follows from the job's id; MASTER_PORT, where it is set, goes first.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    job = submitit.JobEnvironment()
    if job.num_tasks == 1:
        return
    number = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.update(
        WORLD_SIZE=str(job.num_tasks),
        RANK=str(job.global_rank),
        LOCAL_RANK=str(job.local_rank),
        MASTER_ADDR=job.hostnames[0] if "SLURM_JOB_ID" in os.environ else "127.0.0.1",
    )
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + number % PORTS))


def _run(path: Path, stop: StopFlag) -> str:
    place = RunFolder(path)
    main = is_main()
    if main and place.summary().get("state") not in DONE:
        place.set_state("running", mlflow_complete=False)  # whatever an earlier life wrote is over
    from rlrt.config.load import load
    from rlrt.execution.execute import execute

    handler = logging.FileHandler(path / ("log.txt" if main else f"log.rank{os.environ['RANK']}.txt"), delay=not main)
    handler.setLevel(logging.INFO if main else logging.WARNING)
    handler.setFormatter(MaskingFormatter("[%(asctime)s] %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    spec, kind = read_json(path / SPEC), "config"
    try:
        settings = load(spec["plain"], spec["choices"], spec["overrides"])
        leave_sqlite_to_the_driver(settings.tracking)
        kind = "input"  # the config is right: what is refused now is what it names
        refuse_another(spec)
        summary = execute(settings, path, log.info, stop.requested, spec.get("tags", {}), progress=False)
        if main and summary["state"] == "interrupted" and stop.signal is not None:
            requeue(stop.signal)
        return str(summary["state"])
    except RankLost as error:
        note_loss(place, str(error))
        log.error("%s", error)
        if "SLURM_JOB_ID" in os.environ:  # srun --kill-on-bad-exit then ends tasks that would hang
            sys.exit(EXIT)
    except DiskFull as error:
        note(place, failure="disk", error=str(error))
        log.error("%s", error)
    except UserError as error:
        note(place, failure=kind, error=str(error))
        log.error("%s", error)
    except Exception as error:
        kind = "memory" if is_out_of_memory(error) else "error"
        note(place, failure=kind, error=f"{type(error).__name__}: {error}")
        log.exception("the run failed")
    finally:
        log.removeHandler(handler)
        handler.close()
    return "failed"


def refuse_another(spec: dict[str, Any]) -> None:
    """Refuse to go on under an identity that is no longer this run's: the code may have changed while the job waited.

    Raises:
        UserError: saying what to do.
    """
    now = identity(spec["plain"])
    if spec["identity"] != now:
        raise UserError(
            f"the code, a library, or the content of the model or data changed since this job was planned (identity "
            f"{spec['identity']}, now {now}); give the same command again, which plans it anew beside this one."
        )


def note(place: RunFolder, **why: str) -> None:
    """Write down how the run failed, unless the disk takes no more: the job then counts as lost, and is tried again.

    Of several processes the main one does; the others' failures reach it.
    """
    if not is_main():
        return
    with or_logged(place.path / "summary.json"):
        place.set_state("failed", **why)


def note_loss(place: RunFolder, error: str) -> None:
    """Write down which process was lost; where it was the main one, whichever first finds its lease free does."""
    with contextlib.suppress(Held), contextlib.nullcontext() if is_main() else hold(place.path / LEASE):
        if is_main() or place.summary().get("state") == "running":
            with or_logged(place.path / "summary.json"):
                place.set_state("failed", failure="rank", error=error)


def leave_sqlite_to_the_driver(tracking: Any) -> None:
    """On SLURM a SQLite file may lie where nodes share it, which is unsafe: jobs write their record alone.

    The sweep's driver, or ``rlrt.sync``, brings the run to MLflow.
    """
    if os.environ.get("SLURM_JOB_ID") and str(tracking.uri).startswith("sqlite:"):
        tracking.uri = None


def requeue(number: int) -> None:
    """Have SLURM queue this job again after a signal to save: before a time limit, or on a preemption with some grace.

    SIGTERM comes with a preemption and with ``scancel`` alike; only for the first does SLURM still call the job running.
    Here on one machine nothing is done.
    """
    job = slurm_job()
    if not job or number == signal.SIGINT:
        return
    if number == signal.SIGTERM:
        asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
        if asked.stdout.strip() != "RUNNING":
            log.info("not requeued: SLURM calls the job %s", asked.stdout.strip() or "gone")
            return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    log.info("%s %s %s", "not requeued:" if done.returncode else "requeued as", job, done.stderr.strip())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the host or on a GPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
