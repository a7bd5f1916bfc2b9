"""Where jobs run: on this machine or on SLURM, both through submitit, which is imported here alone.

Each launcher is a dataclass whose fields are the keys of ``hydra.launcher.*``.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.distributed.ports import probed
from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.sweep import worker

SLURM_POLL_S = 2.0
"""Seconds between two questions to SLURM."""
SILENCE_S = 180.0
"""Seconds without an answer after which a person is told."""
SETTLE_S = 70.0
"""Longer than a run gives MLflow for its last words."""
MOST_JOBS = 1_000_000
"""More jobs than any sweep has: SLURM holds the queue."""
YEAR_MIN = 60 * 24 * 365
"""submitit's local executor ends a job after two minutes unless told otherwise."""


@dataclass
class LocalLauncher:
    """A few processes on this machine."""

    n_jobs: int = key("jobs at a time", least=1)
    threads_per_job: int | None = key("CPU threads of a job; null: the machine's cores divided by n_jobs", least=1)
    tasks_per_node: int = key("processes of a job, which share its work", least=1)
    _running: dict[Path, Any] = field(default_factory=dict, init=False, repr=False)

    work = staticmethod(worker.run)
    outlives_driver = False

    def room(self, alive: int) -> int:
        """How many more jobs may be started beside ``alive`` ones."""
        return self.n_jobs - alive

    def submit(self, folders: Sequence[Path], sweep: Path, name: str) -> dict[Path, str]:
        """Start a process for every folder; there are no ids. Ctrl-C reaches the workers, which save, not submitit."""
        import submitit

        threads = max(1, (self.threads_per_job or (os.cpu_count() or 1) // self.n_jobs) // self.tasks_per_node)
        executor = submitit.LocalExecutor(folder=sweep / "submitit")
        # submitit would hide the GPUs of this machine from jobs that ask for none
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = "unset CUDA_VISIBLE_DEVICES" if seen is None else f"export CUDA_VISIBLE_DEVICES={shlex.quote(seen)}"
        setup = ["trap '' INT", f"export OMP_NUM_THREADS={threads}", gpus]
        for folder in folders:
            meeting = [f"export MASTER_PORT={free_port()}"] if self.tasks_per_node > 1 else []
            executor.update_parameters(
                timeout_min=YEAR_MIN,
                setup=[*setup, *meeting],
                stderr_to_stdout=True,
                tasks_per_node=self.tasks_per_node,
            )
            self._running[folder] = executor.submit(self.work, str(folder))
        return {}

    def place(self) -> str:
        """What bounds the memory of a job: one that ran out of it may be tried in another place."""
        return f"local, {self.n_jobs} at a time, {self.tasks_per_node} processes each"

    def settle(self, seconds: float = SETTLE_S) -> None:
        """Wait a little for processes whose run has ended and that still talk to MLflow."""
        end = time.monotonic() + seconds
        while any(self.says().values()) and time.monotonic() < end:
            time.sleep(0.1)

    def says(self) -> dict[Path, str]:
        """``RUNNING`` for every process started here, also before it holds its job's lease; empty for those that ended."""
        found = {folder: "" if job.done() else "RUNNING" for folder, job in self._running.items()}
        self._running = {folder: job for folder, job in self._running.items() if found[folder]}
        return found


@dataclass
class SlurmLauncher:
    """One job array on SLURM."""

    partition: str | None = key("partition; null: the cluster's default")
    account: str | None = key("account; null: the user's default")
    qos: str | None = key("quality of service; null: the default")
    nodes: int = key("nodes of a job", least=1)
    tasks_per_node: int = key("processes of a job on each node, which share its work: one for each GPU", least=1)
    gpus_per_node: int | None = key("GPUs of a job on each node; null: none asked for", least=0)
    cpus_per_task: int = key("CPU cores of each process", least=1)
    mem_gb: float | None = key("memory of a job on each node; null: the cluster's default", "GB", above=0)
    timeout_min: int = key("time limit of a job; it saves before and is requeued", "minutes", least=1)
    signal_delay_s: int = key("time between the signal to save and the limit", "seconds", least=1)
    array_parallelism: int = key("jobs of the array that run at a time", least=1)
    setup: list[str] = key("shell lines to run before a job")
    additional_parameters: dict[str, Any] = key("more sbatch options by name")
    dry_run: bool = key("print the sbatch script and submit nothing")
    wait: bool = key("stay until all jobs have ended; false: submit and leave")

    outlives_driver = True

    def check(self) -> None:
        """Refuse to go on where there is no SLURM, or no time between a job's start and its signal to save.

        Raises:
            UserError: saying what to do.
        """
        if self.signal_delay_s >= self.timeout_min * 60:
            raise UserError(
                f"hydra.launcher.signal_delay_s: expected fewer seconds than the time limit ({self.timeout_min} min), got "
                f"{self.signal_delay_s}."
            )
        if not self.dry_run and shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm: expected SLURM's sbatch on this machine, found none; leave hydra/launcher out to run "
                "here, or set hydra.launcher.dry_run=true to see the script."
            )

    def room(self, alive: int) -> int:
        """How many more jobs may be submitted beside ``alive`` ones: SLURM itself lets ``array_parallelism`` run."""
        return MOST_JOBS - alive

    def place(self) -> str:
        """What bounds the memory of a job: one that ran out of it may be tried in another place."""
        return f"slurm, {self.partition}, {self.mem_gb} GB, {self.gpus_per_node} GPUs, {self.nodes} x {self.tasks_per_node}"

    def settle(self) -> None:
        """Jobs on SLURM need nobody to wait for them."""

    def says(self) -> dict[Path, str]:
        """Nothing: ``slurm_states`` tells of jobs by their ids, whichever driver submitted them."""
        return {}

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
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_per_node,
            "gpus_per_node": self.gpus_per_node,
            "cpus_per_task": self.cpus_per_task,
            "mem": None if self.mem_gb is None else f"{int(self.mem_gb * 1024)}M",
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism,
            "setup": [f"export OMP_NUM_THREADS={self.cpus_per_task}", *self.setup],
            "additional_parameters": {"requeue": True, **self.additional_parameters},
            "stderr_to_stdout": True,
            "srun_args": ["--kill-on-bad-exit=1"] if self.nodes * self.tasks_per_node > 1 else None,
        }
        executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        return executor

    def script(self, jobs: int, sweep: Path) -> str:
        """The sbatch script of an array of ``jobs`` jobs."""
        executor = self._executor(sweep, new_name(sweep))
        executor.parameters["map_count"] = jobs
        return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))

    def submit(self, folders: Sequence[Path], sweep: Path, name: str) -> dict[Path, str]:
        """Submit one array under ``name``; returns the SLURM job id of every folder.

        Raises:
            UserError: with sbatch's own words, where SLURM refuses.
        """
        from submitit.core.utils import FailedJobError

        executor = self._executor(sweep, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                jobs = executor.map_array(worker.run, [str(f.resolve()) for f in folders])
        except FailedJobError as error:
            words = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(f"hydra/launcher=slurm: sbatch refused the jobs: {words[-1] if words else error}") from None
        return {folder: job.job_id for folder, job in zip(folders, jobs, strict=True)}


Launcher = LocalLauncher | SlurmLauncher


def free_port() -> int:
    """A port of this machine that nobody has now."""
    return probed("127.0.0.1", 0)


def new_name(sweep: Path) -> str:
    """A name of one submission alone: ``squeue`` finds it should the driver die before it has noted the id."""
    return f"rlrt-{sweep.name[-8:]}-{secrets.token_hex(4)}"


def place_in(folders: Sequence[Path], index: int) -> str:
    """What follows the submission's id in the id of its ``index``-th job; submitit makes no array of one job."""
    return "" if len(folders) == 1 else f"_{index}"


def array_limit() -> int:
    """The most jobs that this cluster takes in one array."""
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return max(1, int(match[1])) if match else 1001


def squeue(*words: str) -> list[str] | None:
    """Lines of ``squeue``, which knows ended jobs for a while too; None where it does not answer.

    (Without accounting, submitit itself would never notice that a job was killed.)
    """
    try:
        done = subprocess.run(
            ["squeue", "-t", "all", "-h", *words], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def slurm_states(ids: Sequence[str]) -> dict[str, str] | None:
    """State of SLURM jobs, empty for those that SLURM no longer knows; None where it does not answer.

    Asks for all jobs of the user: a question by id is refused where one id is too old.
    """
    if not ids:
        return {}
    lines = squeue("-r", "-u", str(os.getuid()), "-o", "%i|%T")
    if lines is None:
        return None
    known = dict(line.split("|", 1) for line in lines if "|" in line)
    return {job: known.get(job, "") for job in ids}


class SlurmView:
    """What SLURM says of jobs, one question for all of them every two seconds; its silence changes nothing."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._asked, self._heard, self._told = -SLURM_POLL_S, time.monotonic(), False

    def ask_anew(self) -> None:
        """Ask at the next look: something was submitted."""
        self._asked = -SLURM_POLL_S

    def states(self, ids: Sequence[str], say: Callable[[str], None]) -> dict[str, str]:
        """State of every job, as last heard; ``PENDING`` for one of which nothing was heard yet."""
        if ids and time.monotonic() - self._asked >= SLURM_POLL_S:
            answer = slurm_states(ids)
            if answer is not None:
                self._known, self._heard, self._told = answer, time.monotonic(), False
            elif time.monotonic() - self._heard > SILENCE_S and not self._told:
                say("WARNING: squeue has not answered for minutes; jobs on SLURM are taken to be as they were")
                self._told = True
            self._asked = time.monotonic()
        return {i: self._known.get(i, "PENDING") for i in ids}


def submitted_as(name: str) -> str | None:
    """The job id (of the array, where it is one) that SLURM gave to the submission of a name; None if it never came.

    Raises:
        UserError: where SLURM does not answer, since submitting again could run jobs twice.
    """
    lines = squeue("-n", name, "-o", "%F")
    if lines is None:
        raise UserError(
            f"squeue does not answer, and only it knows whether the submission {name} arrived; try again later."
        )
    return lines[0].strip() if lines else None
