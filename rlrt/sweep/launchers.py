"""Where jobs run: on this machine or on SLURM, both through submitit, which is imported here alone.

Each launcher is a dataclass whose fields are the keys of ``hydra.launcher.*``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.sweep import worker

YEAR_MIN = 60 * 24 * 365
"""submitit's local executor ends a job after two minutes unless told otherwise."""


@dataclass
class LocalLauncher:
    """A few processes on this machine."""

    n_jobs: int = key("jobs at a time", least=1)
    threads_per_job: int | None = key("CPU threads of a job; null: the machine's cores divided by n_jobs", least=1)
    _running: dict[Path, Any] = field(default_factory=dict, init=False, repr=False)

    name = "local"

    def slots(self) -> int:
        """How many more jobs may be started now."""
        return self.n_jobs - sum(not job.done() for job in self._running.values())

    def submit(self, folders: Sequence[Path], sweep: Path) -> None:
        """Start a process for every folder. Ctrl-C reaches the workers, which save, but not submitit's own processes."""
        import submitit

        threads = self.threads_per_job or max(1, (os.cpu_count() or 1) // self.n_jobs)
        executor = submitit.LocalExecutor(folder=sweep / "submitit")
        executor.update_parameters(
            timeout_min=YEAR_MIN, setup=["trap '' INT", f"export OMP_NUM_THREADS={threads}"], stderr_to_stdout=True
        )
        for folder in folders:
            self._running[folder] = executor.submit(worker.run, str(folder))

    def starting(self, folder: Path) -> bool:
        """Whether the process of a folder exists, also before it holds the job's lease."""
        job = self._running.get(folder)
        return job is not None and not job.done()


@dataclass
class SlurmLauncher:
    """One job array on SLURM."""

    partition: str | None = key("partition; null: the cluster's default")
    account: str | None = key("account; null: the user's default")
    qos: str | None = key("quality of service; null: the default")
    gpus_per_node: int | None = key("GPUs of a job; null: none asked for", least=0)
    cpus_per_task: int = key("CPU cores of a job", least=1)
    mem_gb: float | None = key("memory of a job; null: the cluster's default", "GB", above=0)
    timeout_min: int = key("time limit of a job; it saves before and is requeued", "minutes", least=1)
    signal_delay_s: int = key("time between the signal to save and the limit", "seconds", least=1)
    array_parallelism: int = key("jobs of the array that run at a time", least=1)
    setup: list[str] = key("shell lines to run before a job")
    additional_parameters: dict[str, Any] = key("more sbatch options by name")
    dry_run: bool = key("print the sbatch script and submit nothing")
    wait: bool = key("stay until all jobs have ended; false: submit and leave")

    name = "slurm"

    def check(self) -> None:
        """Refuse to go on where there is no SLURM.

        Raises:
            UserError: saying how to run here.
        """
        if not self.dry_run and shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm: expected SLURM's sbatch on this machine, found none; leave hydra/launcher out to run "
                "here, or set hydra.launcher.dry_run=true to see the script."
            )

    def _executor(self, sweep: Path, name: str) -> Any:
        import submitit

        class Anywhere(submitit.SlurmExecutor):
            """submitit's executor, which otherwise refuses to be made where srun is not found (a dry run needs none)."""

            @classmethod
            def affinity(cls) -> int:
                return 2

        executor = Anywhere(folder=(sweep / "submitit").resolve(), max_num_timeout=10_000)
        parameters = {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "gpus_per_node": self.gpus_per_node,
            "cpus_per_task": self.cpus_per_task,
            "mem": None if self.mem_gb is None else f"{int(self.mem_gb * 1024)}M",
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism,
            "setup": [f"export OMP_NUM_THREADS={self.cpus_per_task}", *self.setup],
            "additional_parameters": {"requeue": True, **self.additional_parameters},
            "stderr_to_stdout": True,
        }
        executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        return executor

    def script(self, jobs: int, sweep: Path) -> str:
        """The sbatch script of an array of ``jobs`` jobs."""
        executor = self._executor(sweep, self.new_name(sweep))
        executor.parameters["map_count"] = jobs
        return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))

    def new_name(self, sweep: Path) -> str:
        """A name of this submission alone: ``squeue`` finds it should the driver die before it has noted the id."""
        return f"rlrt-{sweep.name[-8:]}-{secrets.token_hex(4)}"

    def submit(self, folders: Sequence[Path], sweep: Path, name: str) -> dict[Path, str]:
        """Submit one array under ``name``; returns the SLURM job id of every folder."""
        executor = self._executor(sweep, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jobs = executor.map_array(worker.run, [str(f.resolve()) for f in folders])
        return {folder: job.job_id for folder, job in zip(folders, jobs, strict=True)}


def slurm_states(ids: Sequence[str]) -> Mapping[str, str]:
    """State of SLURM jobs by ``squeue``, which knows the finished ones for a while too; unknown ones are left out.

    (Without accounting, submitit itself would never notice that a job was killed.)
    """
    arrays = sorted({i.split("_")[0] for i in ids})
    if not arrays:
        return {}
    done = subprocess.run(
        ["squeue", "-r", "-t", "all", "-h", "-o", "%i|%T", "-j", ",".join(arrays)],
        capture_output=True,
        text=True,
        check=False,
    )
    pairs = (line.split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    wanted = set(ids)
    return {job: state for job, state in pairs if job in wanted}


def submitted_as(name: str) -> str | None:
    """The job id (of the array, where it is one) that SLURM gave to the submission of a name; None if it never came."""
    done = subprocess.run(
        ["squeue", "-t", "all", "-h", "-n", name, "-o", "%F"], capture_output=True, text=True, check=False
    )
    return next(iter(done.stdout.split()), None)


ALIVE = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SUSPENDED",
    "RESIZING",
)
"""States of ``squeue`` in which a job will still run, or does."""
