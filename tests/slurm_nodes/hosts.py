"""Commands on the hosts of ``nodes.sh``, a SLURM of several nodes on this machine. Root gives them, for a user to run."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.sweep.test_driver import ENVIRONMENT

SCRIPT = Path(__file__).with_name("nodes.sh")
PLACE = Path(os.environ.get("SLURM_NODES_ROOT", "/tmp/rlrt-nodes"))
SHARED = PLACE / "shared"
"""The folder that all hosts see."""
USER = os.environ.get("SLURM_NODES_USER", "root")
"""Who gives the commands on the hosts."""


def script(*words: str) -> subprocess.CompletedProcess[str]:
    """``nodes.sh WORDS``, and what it said."""
    return subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, check=False)


def do(*words: str) -> None:
    """``nodes.sh WORDS``, which must not fail."""
    done = script(*words)
    assert done.returncode == 0, f"nodes.sh {' '.join(words)}: {done.stdout}{done.stderr}"


def missing() -> str:
    """What hosts and their user need and this machine lacks, in one sentence; empty where nothing does."""
    if sentence := script("possible").stderr.strip():
        return sentence
    try:
        subprocess.run([sys.executable, "-c", ""], user=USER, cwd="/", capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return (
            f"expected a Python that the user {USER} may run, found {Path(sys.executable).resolve()}; remove the checkout's "
            ".venv, and give PYTHON=/usr/bin/python3 to make, or another one outside of root's folders."
        )
    return ""


def names() -> list[str]:
    """The nodes: node1, node2, ..."""
    return [f"node{n + 1}" for n in range(int((PLACE / "nodes").read_text()))]


def folder(name: str) -> Path:
    """A new, empty folder that all hosts see and the user may write."""
    made = SHARED / name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    give(made)
    return made


def give(path: Path) -> None:
    """Let the user own a file or folder."""
    user = pwd.getpwnam(USER)
    os.chown(path, user.pw_uid, user.pw_gid)


def environment(home: Path) -> dict[str, str]:
    """The environment of a command there; what MLflow, Hydra and torch keep goes to ``home``."""
    return ENVIRONMENT | {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(cwd: Path, *arguments: str, module: str = "rlrt.run", host: str = "login", **more: str) -> subprocess.Popen:
    """``python -m MODULE ARGUMENTS`` on a host, in ``cwd``."""
    return subprocess.Popen(
        ["bash", str(SCRIPT), "on", host, sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment(cwd) | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float = 200) -> tuple[int, str]:
    """Wait for a command's end; what is not over in time is ended."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # nodes.sh, nsenter and the command on the host are one group
        output, _ = process.communicate()
        raise AssertionError(f"not over after {timeout} s:\n{output}") from None
    return process.returncode, output


def run(cwd: Path, *arguments: str, timeout: float = 200, **more: str) -> tuple[int, str]:
    """``start`` and ``finish``."""
    return finish(start(cwd, *arguments, **more), timeout)


@dataclass(frozen=True)
class Task:
    """A process of a SLURM job on a host.

    Attributes:
        pid: its number here, outside the hosts.
        there: its number on its host, which is what messages name.
        node: the host.
        rank: of the job's processes.
        job: id of the SLURM job; of an array ARRAY_ELEMENT.
    """

    pid: int
    there: int
    node: str
    rank: int
    job: str

    def kill(self) -> None:
        """End it as the kernel would that has no memory left."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def tasks(place: Path) -> list[Task]:
    """Processes of SLURM jobs that work for a folder's sweeps, in the order of node, job and rank."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            status = (folder / "status").read_text()
        except OSError:  # it has ended
            continue
        words = command.split(b"\0")
        if b"submitit.core._submit" not in words or str(place).encode() not in command or b"python" not in words[0]:
            continue
        known = dict(line.split("=", 1) for line in variables.decode(errors="replace").split("\0") if "=" in line)
        if "SLURM_PROCID" not in known or "SLURMD_NODENAME" not in known:
            continue
        array, element = known.get("SLURM_ARRAY_JOB_ID"), known.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{element}" if array else known["SLURM_JOB_ID"]
        (numbers,) = (line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
        found.append(
            Task(int(folder.name), int(numbers[-1]), known["SLURMD_NODENAME"], int(known["SLURM_PROCID"]), job)
        )
    return sorted(found, key=lambda task: (task.node, task.job, task.rank))
