"""The entry point of a job's process: one run, from ``job.json`` to its summary. submitit calls it, locally or on a node."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from rlrt.config.schema import Settings
from rlrt.distributed.addresses import reachable_name
from rlrt.distributed.rank import EXIT, HOSTS, is_main, processes
from rlrt.errors import DiskFull, FolderLost, FolderRemoved, NotMet, RankLost, Replaced, UserError
from rlrt.execution.stop import StopFlag
from rlrt.paths import saved_steps
from rlrt.records.files import json_object, mapping, or_logged, read_json
from rlrt.records.folder import BEGUN, RunFolder
from rlrt.records.identity import identity
from rlrt.records.lease import LEASE, LeaseTaken, hold_lease, slurm_job
from rlrt.records.secrets import MaskingFormatter
from rlrt.records.storage import loss
from rlrt.records.streams import LogFile, mask_streams
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import DONE

log = logging.getLogger("rlrt")
NO_PROGRESS = (
    "from its start to its time limit this job could not write a new checkpoint, so it would never end; raise "
    "hydra.launcher.timeout_min, or make steps shorter (train.prompts_per_step, eval.prompts), and give the same command again"
)
FIRST_PORT, PORTS = 15_000, 17_000
"""Range of rendezvous ports for the tasks of a SLURM job, below the ports that Linux gives to outgoing connections."""
FIRST_WORD_S = 5.0
"""Seconds for which another rank that failed waits for the main one's word."""


def run(folder: str) -> str:
    """Run or resume the job of a folder; each task of a job with several tasks calls this.

    Errors inside the run are not raised: the folder's ``summary.json`` stores them (state, kind of failure, one line), and
    ``log.txt`` has the traceback.

    Returns:
        the job's state.
    """
    path = Path(folder)
    mask_streams()
    meet()
    state = "failed"
    try:
        with StopFlag() as stop, hold_lease(path / LEASE) if is_main() else contextlib.nullcontext():
            state = _run(path, stop)  # nothing slow runs before this: every later signal is handled
    except LeaseTaken:
        state = "running"
    except Exception as error:  # submitit would store it, and print it as it is
        lost = loss(error, path)
        print(f"{lost}" if lost else traceback.format_exc(), file=sys.stderr, flush=True)
        if isinstance(lost, DiskFull):  # the lease has given its bytes back, which may do for one sentence
            with contextlib.suppress(UserError):
                note(RunFolder(path), failure="disk", error=str(lost))
    if state in ("failed", "running") and processes() > 1 and "SLURM_JOB_ID" in os.environ:
        await_main(path)
        sys.exit(EXIT)  # srun --kill-on-bad-exit then ends the tasks that would wait for this one
    return state


def await_main(path: Path) -> None:
    """Give the main rank, which srun ends with this one, ``FIRST_WORD_S`` seconds to store its own error first."""
    end = time.monotonic() + FIRST_WORD_S
    while not is_main() and time.monotonic() < end:
        if read_json(path / "summary.json").get("state", "queued") not in ("queued", "running"):
            return
        time.sleep(0.1)


def meet() -> None:
    """Set torchrun's environment variables from submitit's (on SLURM, from SLURM's own) description of the job's tasks.

    The tasks meet at the first node, at MASTER_PORT if it is set, and otherwise at a port derived from the job's id.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    job = submitit.JobEnvironment()
    if job.num_tasks == 1:
        return
    first = reachable_name(
        job.hostnames[0], os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    )  # srun's: it runs on the first node
    number = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.update(
        WORLD_SIZE=str(job.num_tasks),
        RANK=str(job.global_rank),
        LOCAL_RANK=str(job.local_rank),
        MASTER_ADDR=first if "SLURM_JOB_ID" in os.environ else "127.0.0.1",
    )
    if "SLURM_JOB_ID" in os.environ:
        os.environ[HOSTS] = ",".join(job.hostnames)
    if "SLURM_JOB_ID" not in os.environ:  # SLURM may show each task its own GPUs alone
        os.environ["LOCAL_WORLD_SIZE"] = str(job.num_tasks)
    os.environ.setdefault("MASTER_PORT", str(FIRST_PORT + number % PORTS))


def _run(path: Path, stop: StopFlag) -> str:
    run_folder = RunFolder(path)
    main = is_main()
    earlier = run_folder.summary().get("state")
    if main and earlier not in DONE:  # replaces the state of an earlier process
        run_folder.set_state("running", mlflow_complete=False, **({} if earlier == "running" else {BEGUN: False}))
    from rlrt.config.load import load
    from rlrt.execution.execute import execute

    handler = LogFile(str(path / ("log.txt" if main else f"log.rank{os.environ['RANK']}.txt")))
    handler.setLevel(logging.INFO if main else logging.WARNING)
    handler.setFormatter(MaskingFormatter("[%(asctime)s] %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    kind = "config"
    try:
        spec = spec_of(path / SPEC)
        settings = load(spec["plain"], spec["choices"], spec["overrides"])
        settings = without_sqlite(settings)
        kind = "input"  # the config is valid: from now on a UserError is about the model or data that it names
        refuse_another(spec)
        before = newest_step(path)
        tags = {str(k): str(v) for k, v in mapping(spec.get("tags")).items()}
        summary = execute(settings, path, log.info, stop.requested, tags, progress=False, time_left=stop.time_left)
        if main and summary["state"] == "interrupted" and stop.signal is not None:
            if stop.signal == signal.SIGUSR2 and newest_step(path) == before and slurm_job():
                raise NoProgress(NO_PROGRESS)
            requeue(stop.signal)
        return str(summary["state"])
    except RankLost as error:
        log.error("%s", error)  # the first rank that could has stored it
    except NotMet as error:
        note(run_folder, failure="rank", error=str(error))
        log.error("%s", error)
    except NoProgress as error:
        note(run_folder, failure="limit", error=str(error))
        log.error("%s", error)
    except Replaced as error:  # log.txt is another process's now
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except FolderRemoved as error:
        log.error("%s", error)
    except FolderLost as error:
        note(run_folder, failure="disk" if isinstance(error, DiskFull) else "folder", error=str(error))
        log.error("%s", error)
    except UserError as error:
        note(run_folder, failure=kind, error=str(error))
        log.error("%s", error)
    except Exception as error:
        if lost := loss(error, path):
            if not isinstance(lost, FolderRemoved):
                note(run_folder, failure="disk" if isinstance(lost, DiskFull) else "folder", error=str(lost))
            log.error("%s", lost)
            return "failed"
        kind = "memory" if is_out_of_memory(error) else "error"
        note(run_folder, failure=kind, error=f"{type(error).__name__}: {error}")
        log.exception("the run failed")
    finally:
        log.removeHandler(handler)
        handler.close()
    return "failed"


def spec_of(file: Path) -> dict[str, Any]:
    """Read a job's ``job.json``.

    Raises:
        UserError: for one that does not hold what a job needs.
    """
    spec = json_object(file)
    kinds = {"plain": dict, "choices": dict, "overrides": list, "identity": str}
    for name, kind in kinds.items():
        if not isinstance(spec.get(name), kind):
            raise UserError(
                f"{file} cannot be read as a job: expected a {kind.__name__} as {name}; give the command again."
            )
    return spec


class NoProgress(Exception):
    """A job reached its time limit without a checkpoint that it did not begin with."""


def newest_step(path: Path) -> int:
    """Return the step of the newest checkpoint in a run's folder; 0 without one."""
    return max(saved_steps(path), default=0)


def refuse_another(spec: dict[str, Any]) -> None:
    """Refuse a job whose identity has changed since it was planned: the code may have changed while the job waited.

    Raises:
        UserError: with both identities and what to do.
    """
    now = identity(spec["plain"])
    if spec["identity"] != now:
        raise UserError(
            f"the code, a library, or the content of the model or data changed since this job was planned (identity "
            f"{spec['identity']}, now {now}); give the same command again, which plans a new job beside this one."
        )


def note(run_folder: RunFolder, **reason: str) -> None:
    """Store how the run failed; if the disk is full, nothing is stored, and the job counts as lost and is retried.

    Only the main rank writes; it learns of the other ranks' failures.
    """
    if not is_main():
        return
    with or_logged(run_folder.path / "summary.json"):
        run_folder.set_state("failed", **reason)


def without_sqlite(settings: Settings) -> Settings:
    """Disable SQLite tracking (MLflow's, and Trackio's) for a job on SLURM: the file may be on storage that nodes share, where
    SQLite is unsafe.

    The job then writes only its record, and the sweep's driver or ``rlrt.sync`` sends the run there.
    """
    if not os.environ.get("SLURM_JOB_ID"):
        return settings
    tracking = dataclasses.replace(settings.tracking, trackio=None)
    if str(tracking.uri).startswith("sqlite:"):
        tracking = dataclasses.replace(tracking, uri=None)
    return dataclasses.replace(settings, tracking=tracking)


def requeue(number: int) -> None:
    """Have SLURM queue this job again after a signal to save: before the time limit, or on a preemption with a grace time.

    A preemption and ``scancel`` both send SIGTERM, but only in a preemption does SLURM still report the job as running.
    Outside SLURM this does nothing.
    """
    job = slurm_job()
    if not job or number == signal.SIGINT:
        return
    if number == signal.SIGTERM:
        query = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
        if query.stdout.strip() != "RUNNING":
            log.info("not requeued: SLURM calls the job %s", query.stdout.strip() or "gone")
            return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    log.info("%s %s %s", "not requeued:" if done.returncode else "requeued as", job, done.stderr.strip())


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error means that memory ran out, on the host or on a GPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
