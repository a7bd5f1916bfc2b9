"""Launchers: run jobs on this machine or on SLURM, both through submitit.

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

from rlrt.distributed.cards import visible_cards
from rlrt.distributed.ports import probed
from rlrt.errors import UserError
from rlrt.execution.memory.free import SHARING
from rlrt.execution.stop import GRACE
from rlrt.keys import key
from rlrt.records.files import resolved
from rlrt.records.secrets import masked
from rlrt.sweep import worker
from rlrt.sweep.limit import Refused
from rlrt.sweep.names import Submitted
from rlrt.sweep.sbatch import check_texts, options

SLURM_POLL_S = 2.0
"""Seconds between two queries to SLURM."""
SILENCE_S = 180.0
"""Seconds without an answer from SLURM after which the driver prints a warning."""
SETTLE_S = 70.0
"""Seconds to wait for processes that still send to MLflow: longer than a run waits for MLflow at its end."""
MOST_JOBS = 1_000_000
"""Upper limit on submitted jobs, more than any sweep has: SLURM itself queues them."""
CPU_JOBS = 2
"""Jobs at a time on a machine without GPUs."""
LOST = re.compile(r"timed out|unable to contact|communication|connection", re.IGNORECASE)
"""Words of sbatch after which SLURM may have taken the jobs nevertheless."""
YEAR_MIN = 60 * 24 * 365
"""Timeout in minutes for submitit's local executor, which otherwise ends a job after two minutes."""


@dataclass
class LocalLauncher:
    """Runs a few jobs at a time as processes on this machine."""

    n_jobs: int | None = key("jobs at a time; null: as many as the machine's GPUs serve, and 2 without GPUs", least=1)
    threads_per_job: int | None = key("CPU threads of a job; null: the machine's cores divided by n_jobs", least=1)
    nodes: int = key("machines of a job; this launcher has one", least=1)
    tasks_per_node: int = key("processes of a job, which share its work", least=1)
    gpus_per_node: int | None = key(
        "GPUs of a job, its own while there are enough; null: one for each process", least=0
    )
    _cards: list[str] | None = field(default=None, init=False, repr=False)
    _taken: dict[Path, list[str]] = field(default_factory=dict, init=False, repr=False)
    _running: dict[Path, Any] = field(default_factory=dict, init=False, repr=False)

    work = staticmethod(worker.run)
    outlives_driver = False

    def room(self, alive: int) -> int:
        """Return how many more jobs may be started while ``alive`` jobs are active."""
        return self.jobs_at_once() - alive

    def cards(self) -> list[str]:
        """Return the GPUs of this machine that jobs may use, as CUDA_VISIBLE_DEVICES names them."""
        if self._cards is None:
            self._cards = visible_cards()
        return self._cards

    def cards_per_job(self) -> int:
        """Return the number of GPUs of a job."""
        return self.tasks_per_node if self.gpus_per_node is None else self.gpus_per_node

    def jobs_at_once(self) -> int:
        """Return ``n_jobs``, or its default."""
        if self.n_jobs is not None:
            return self.n_jobs
        wanted = self.cards_per_job()
        return max(1, len(self.cards()) // wanted) if self.cards() and wanted else CPU_JOBS

    def cards_of(self, folder: Path) -> list[str]:
        """Return GPUs for a job: those that the fewest active jobs use."""
        self._taken = {f: cards for f, cards in self._taken.items() if f in self._running}
        users = {card: sum(card in cards for cards in self._taken.values()) for card in self.cards()}
        self._taken[folder] = sorted(users, key=lambda card: users[card])[: self.cards_per_job()]
        return self._taken[folder]

    def _gpu_setup(self, folder: Path) -> str:
        """Return the shell line that gives a job its GPUs; without one submitit would hide the GPUs from it."""
        if not self.cards() and "CUDA_VISIBLE_DEVICES" not in os.environ and self.gpus_per_node is None:
            return "unset CUDA_VISIBLE_DEVICES"  # no GPU was found to give away: the job sees what the machine has
        return f"export CUDA_VISIBLE_DEVICES={shlex.quote(','.join(self.cards_of(folder)))}"

    def check(self) -> None:
        """Refuse jobs that ask for more GPUs or machines than there are.

        Raises:
            UserError: with both numbers.
        """
        if self.nodes > 1:
            raise UserError(
                f"hydra.launcher.nodes: a job asks for {self.nodes} machines, and this launcher has one; add "
                "hydra/launcher=slurm."
            )
        if self.gpus_per_node is not None and self.gpus_per_node > len(self.cards()):
            raise UserError(
                f"hydra.launcher.gpus_per_node: a job asks for {self.gpus_per_node} GPUs, and this machine has "
                f"{len(self.cards())}; lower it, or leave it out."
            )

    def submit(self, folders: Sequence[Path], sweep: Path, name: str) -> dict[Path, str]:
        """Start a process for every folder and return no ids. Ctrl-C reaches the workers, which save, but not submitit."""
        import submitit

        threads = max(1, (self.threads_per_job or (os.cpu_count() or 1) // self.jobs_at_once()) // self.tasks_per_node)
        executor = submitit.LocalExecutor(folder=sweep / "submitit")
        setup = ["trap '' INT", f"export OMP_NUM_THREADS={threads}", f"export {SHARING}={self.jobs_at_once()}"]
        for folder in folders:
            gpu_setup = self._gpu_setup(folder)
            rendezvous = [f"export MASTER_PORT={free_port()}"] if self.tasks_per_node > 1 else []
            executor.update_parameters(
                timeout_min=YEAR_MIN,
                setup=[*setup, gpu_setup, *rendezvous],
                stderr_to_stdout=True,
                tasks_per_node=self.tasks_per_node,
            )
            self._running[folder] = executor.submit(self.work, str(folder))
        return {}

    def limits(self) -> str:
        """Describe what limits a job's memory: a job that ran out of memory is retried only if this text changed."""
        return f"local, {self.jobs_at_once()} at a time, {self.tasks_per_node} processes each"

    def settle(self, seconds: float = SETTLE_S) -> None:
        """Wait at most ``seconds`` for processes whose run has ended but that still send to MLflow."""
        end = time.monotonic() + seconds
        while any(self.process_states().values()) and time.monotonic() < end:
            time.sleep(0.1)

    def process_states(self) -> dict[Path, str]:
        """Return ``RUNNING`` for each active process, also before it holds its job's lease, and "" for an ended one."""
        states = {folder: "" if job.done() else "RUNNING" for folder, job in self._running.items()}
        self._running = {folder: job for folder, job in self._running.items() if states[folder]}
        return states


@dataclass
class SlurmLauncher:
    """Runs jobs as one job array on SLURM."""

    partition: str | None = key("partition; null: the cluster's default")
    account: str | None = key("account; null: the user's default")
    qos: str | None = key("quality of service; null: the default")
    nodes: int = key("nodes of a job", least=1)
    tasks_per_node: int = key("processes of a job on each node, which share its work: one for each GPU", least=1)
    gpus_per_node: int | None = key(
        "GPUs of a job on each node; null: one for each process, and none where every job says device=cpu", least=0
    )
    cpus_per_task: int = key("CPU cores of each process", least=1)
    mem_gb: float | None = key("memory of a job on each node; null: the cluster's default", "GB", above=0)
    timeout_min: int = key("time limit of a job; it saves before and is requeued", "minutes", least=1)
    signal_delay_s: int = key("time between the signal to save and the limit", "seconds", least=1)
    array_parallelism: int = key("jobs of the array that run at a time", least=1)
    max_queued: int | None = key(
        "the most jobs that SLURM has at a time, waiting or running; the others follow; null: as many as it takes",
        least=1,
    )
    setup: list[str] = key("shell lines to run before a job")
    additional_parameters: dict[str, Any] = key("more sbatch options by name")
    dry_run: bool = key("print the sbatch script and submit nothing")
    wait: bool = key("stay until all jobs have ended; false: submit and leave")

    outlives_driver = True

    def check(self) -> None:
        """Refuse a machine without SLURM, texts that would break the script, and a time limit that leaves no time to save.

        Raises:
            UserError: with the key to change.
        """
        check_texts({"partition": self.partition, "account": self.account, "qos": self.qos}, self.setup)
        options(self.additional_parameters)
        if self.signal_delay_s >= self.timeout_min * 60:
            raise UserError(
                f"hydra.launcher.signal_delay_s: expected fewer seconds than the time limit ({self.timeout_min} min), got "
                f"{self.signal_delay_s}."
            )
        if not self.dry_run and shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm: expected SLURM's sbatch on this machine, found none; leave hydra/launcher out to run "
                "on this machine, or set hydra.launcher.dry_run=true to see the script."
            )

    def room(self, alive: int) -> int:
        """Return how many more jobs may be submitted: by ``max_queued`` alone, since SLURM itself enforces the rest."""
        return (self.max_queued or MOST_JOBS) - alive

    def limits(self) -> str:
        """Describe what limits a job's memory: a job that ran out of memory is retried only if this text changed."""
        return f"slurm, {self.partition}, {self.mem_gb} GB, {self.gpus_per_node} GPUs, {self.nodes} x {self.tasks_per_node}"

    def settle(self) -> None:
        """Do nothing: jobs on SLURM do not need the driver to wait for them."""

    def process_states(self) -> dict[Path, str]:
        """Return {}: ``slurm_states`` gives the state of jobs by their ids, whichever driver submitted them."""
        return {}

    def _executor(self, sweep: Path, name: str) -> Any:
        import submitit

        class Anywhere(submitit.SlurmExecutor):
            """submitit's executor, usable without srun: a dry run does not need it."""

            @classmethod
            def affinity(cls) -> int:
                return 2

        executor = Anywhere(folder=resolved(sweep / "submitit"), max_num_timeout=10_000)
        parameters = {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_per_node,
            "gpus_per_node": self.gpus_per_node or None,
            "cpus_per_task": self.cpus_per_task,
            "mem": None if self.mem_gb is None else f"{int(self.mem_gb * 1024)}M",
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "array_parallelism": self.array_parallelism,
            "setup": [
                f"export OMP_NUM_THREADS={self.cpus_per_task}",
                f"export {GRACE}={self.signal_delay_s}",
                *self.setup,
            ],
            "additional_parameters": options({"requeue": True, **self.additional_parameters}),
            "stderr_to_stdout": True,
            "srun_args": self.srun_arguments(),
        }
        executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        return executor

    def srun_arguments(self) -> list[str]:
        """Return srun's own options: SLURM 22.05 to 23.02 do not tell it the CPUs of a task that sbatch got."""
        typed = {name.replace("_", "-"): value for name, value in options(self.additional_parameters).items()}
        cpus = [f"--cpus-per-task={typed.get('cpus-per-task', self.cpus_per_task)}"]
        return [*cpus, "--kill-on-bad-exit=1"] if self.nodes * self.tasks_per_node > 1 else cpus

    def script(self, jobs: int, sweep: Path) -> str:
        """Return the sbatch script of an array of ``jobs`` jobs."""
        executor = self._executor(sweep, new_name(sweep))
        executor.parameters["map_count"] = jobs
        return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))

    def submit(self, folders: Sequence[Path], sweep: Path, name: str) -> dict[Path, str]:
        """Submit one array under ``name``; return the SLURM job id of every folder.

        Raises:
            Refused: with sbatch's message, if SLURM refuses.
            UserError: if it is not known whether SLURM took the jobs; what it took is cancelled.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if any(masked(line) != line for line in map(str, [*self.setup, *self.additional_parameters.values()])):
            (sweep / "submitit").mkdir(mode=0o700, exist_ok=True)  # its scripts hold what these lines do
        executor = self._executor(sweep, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                jobs = executor.map_array(worker.run, [str(resolved(f)) for f in folders])
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = f"hydra/launcher=slurm: sbatch refused the jobs: {lines[-1] if lines else error}"
            if isinstance(error, FailedJobError) and not LOST.search(str(error)):
                raise Refused(said) from None
            subprocess.run(["scancel", "--name", name], capture_output=True, check=False)
            raise UserError(said) from None
        return {folder: job.job_id for folder, job in zip(folders, jobs, strict=True)}


Launcher = LocalLauncher | SlurmLauncher


def free_port() -> int:
    """Return a port of this machine that is free now."""
    return probed("127.0.0.1", 0)


def new_name(sweep: Path) -> str:
    """Return a unique name for one submission: ``squeue`` finds it if the driver dies before it has stored the id."""
    return f"rlrt-{re.sub('[^A-Za-z0-9_.=-]', '_', sweep.name[-8:])}-{secrets.token_hex(4)}"


def array_suffix(folders: Sequence[Path], index: int) -> str:
    """Return the suffix ``_INDEX`` of a job's id in its array; empty for a single job, which submitit does not array."""
    return "" if len(folders) == 1 else f"_{index}"


def array_limit() -> int:
    """Return the most jobs that this cluster accepts in one array."""
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return max(1, int(match[1])) if match else 1001


def squeue(*options: str) -> list[str] | None:
    """Return the output lines of ``squeue``, which also lists ended jobs for a while; None if it does not answer.

    (Without SLURM accounting, submitit itself would never notice that a job was killed.)
    """
    try:
        done = subprocess.run(
            ["squeue", "-t", "all", "-h", *options], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def slurm_states(jobs: Sequence[Submitted]) -> dict[Submitted, str] | None:
    """Return the state of SLURM jobs, "" for jobs that SLURM no longer knows; None if SLURM does not answer.

    It queries all jobs of the user: SLURM refuses a query by id if one of the ids is too old. A cluster whose state was lost,
    or another cluster, gives the ids anew: a job of that id and another name is not the one that was submitted.
    """
    if not jobs:
        return {}
    lines = squeue("-r", "-u", str(os.getuid()), "-o", "%i|%T|%j")
    if lines is None:
        return None
    found = (line.split("|", 2) for line in lines if line.count("|") >= 2)
    states = {(number, name): state for number, state, name in found}
    return {job: states.get(job, "") for job in jobs}


class SlurmView:
    """Cached states of SLURM jobs: one query for all jobs every two seconds; without an answer the states stay as they are."""

    def __init__(self) -> None:
        self._states: dict[Submitted, str] = {}
        self._asked_at, self._answered_at, self._warned = -SLURM_POLL_S, time.monotonic(), False

    def ask_anew(self) -> None:
        """Query SLURM at the next poll, since jobs were submitted."""
        self._asked_at = -SLURM_POLL_S

    def states(self, jobs: Sequence[Submitted], say: Callable[[str], None]) -> dict[Submitted, str]:
        """Return the last known state of every job; ``PENDING`` for a job without a known state."""
        if jobs and time.monotonic() - self._asked_at >= SLURM_POLL_S:
            answer = slurm_states(jobs)
            if answer is not None:
                self._states, self._answered_at, self._warned = answer, time.monotonic(), False
            elif time.monotonic() - self._answered_at > SILENCE_S and not self._warned:
                say("WARNING: squeue has not answered for minutes; jobs on SLURM keep their last known states")
                self._warned = True
            self._asked_at = time.monotonic()
        return {job: self._states.get(job, "PENDING") for job in jobs}


def submitted_as(name: str) -> str | None:
    """Return the job id (or the array's id) of the submission with a name; None if SLURM never received it.

    Raises:
        UserError: if SLURM does not answer, since submitting again could run jobs twice.
    """
    lines = squeue("-n", name, "-o", "%F")
    if lines is None:
        raise UserError(
            f"squeue does not answer, and only it knows whether the submission {name} arrived; try again later."
        )
    return lines[0].strip() if lines else None
