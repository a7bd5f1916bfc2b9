"""The world of a soak: hosts, a small disk, an MLflow server, two commands given again and again, and what befalls them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm_nodes import hosts
from tests.soak.plan import Disturbance

MLFLOW = "http://ctl:5000"
AGAIN_S = 3.0
"""Seconds after which a command that ended short is given again."""
SLURM = (
    "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=30",
    "hydra.sweeper.max_retries=50",
)  # fmt: skip
SMALL = (
    "train.prompts_per_step=2", "train.rollouts_per_prompt=4", "eval.prompts=4", "train.eval_every=8", "train.save_every=4",
    "tracking.samples_every=4", "tracking.samples=2",
)  # fmt: skip
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass
class Command:
    """A sweep's command: given until it ends well.

    Attributes:
        name: grid or search.
        words: what is typed, apart from folder and experiment.
        root: folder under which its sweeps lie.
        home: working directory.
        round: how many sweeps it has finished.
        codes: exit codes of all drivers so far; -9 for one that was killed.
    """

    name: str
    words: tuple[str, ...]
    root: Path
    home: Path
    round: int = 1
    codes: list[int] = field(default_factory=list)
    driver: subprocess.Popen | None = None
    ended_at: float = 0.0
    over: bool = False

    @property
    def sweep(self) -> Path:
        """Folder of the sweep of this round."""
        return self.root / f"{self.name}-{self.round}"

    def give(self) -> None:
        """Start a driver on the login host."""
        log = (self.home / f"{self.name}-{self.round}.log").open("a")
        words = (*self.words, f"hydra.sweep.dir={self.sweep}", f"tracking.experiment={self.sweep.name}")
        with log:
            self.driver = subprocess.Popen(
                ["bash", str(hosts.SCRIPT), "on", "login", sys.executable, "-m", "rlrt.run", "-m", *words],
                cwd=self.home,
                env=hosts.environment(self.home) | QUIET,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def watch(self) -> bool:
        """Give the command again if its driver ended short; True once one ended well."""
        if self.driver is None:
            if not self.over and time.monotonic() - self.ended_at > AGAIN_S:
                self.give()
        elif self.driver.poll() is not None:
            self.codes.append(self.driver.returncode)
            self.driver, self.ended_at, self.over = None, time.monotonic(), self.codes[-1] == 0
        return self.over

    def next_round(self) -> None:
        """Begin a new sweep."""
        self.round, self.over = self.round + 1, False

    def process(self) -> int | None:
        """The driver's process, seen from here."""
        if self.driver is None:
            return None
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"rlrt.run" in words and f"hydra.sweep.dir={self.sweep}".encode() in words and b"python" in words[0]:
                    return int(folder.name)
        return None


class World:
    """Everything that a soak disturbs.

    Args:
        size_mb: of the disk on which the search's folder lies.
        say: prints a line.
    """

    def __init__(self, size_mb: int, say: Callable[[str], None]) -> None:
        self.say, self.size_mb = say, size_mb
        self.place, self.disk = hosts.SHARED / "soak", hosts.SHARED / "soak" / "disk"
        self.commands: list[Command] = []
        self._server: subprocess.Popen | None = None
        self._right: dict[str, tuple[float, Callable[[], None]]] = {}
        self._ill: dict[str, str] = {}

    def begin(self) -> None:
        """Mount the disk, start hosts that see it, and the server."""
        hosts.do("stop")
        self._unmount()
        hosts.folder("soak")
        for folder in (self.disk, self.place / "mlflow"):
            folder.mkdir()
            hosts.give(folder)
        options = f"size={self.size_mb}m,uid={self.disk.stat().st_uid},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "soak", str(self.disk)], check=True)
        hosts.do("start")
        self.start_mlflow()
        self.await_mlflow()

    def end(self) -> None:
        """End what was started here: drivers, server, hosts; the files stay, but for those of the disk."""
        for command in self.commands:
            if command.driver is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(command.driver.pid, signal.SIGKILL)
                command.driver.wait()
        self.stop_mlflow()
        hosts.do("stop")
        self._unmount()

    def _unmount(self) -> None:
        while os.path.ismount(self.disk):
            subprocess.run(["umount", "-l", str(self.disk)], check=True)

    def start_mlflow(self) -> None:
        """Start the server on ctl; ``await_mlflow`` waits until it answers, which nobody does while sweeps are disturbed."""
        store = self.place / "mlflow"
        with (self.place / "mlflow.log").open("a") as log:
            self._server = subprocess.Popen(
                [
                    "bash", str(hosts.SCRIPT), "on", "ctl", sys.executable, "-m", "mlflow", "server", "--workers", "1",
                    "--host", "0.0.0.0", "--port", "5000", "--allowed-hosts", "*", "--backend-store-uri",
                    f"sqlite:///{store}/server.db", "--artifacts-destination", f"{store}/artifacts",
                ],
                cwd=self.place, env=hosts.environment(self.place) | QUIET, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def await_mlflow(self, seconds: float = 300) -> None:
        """Wait until the server answers."""
        ask = "import urllib.request; urllib.request.urlopen('http://ctl:5000/health', timeout=2)"
        end = time.monotonic() + seconds
        while hosts.script("on", "ctl", sys.executable, "-c", ask).returncode:
            if self._server is not None and self._server.poll() is not None:
                raise AssertionError(f"the MLflow server has ended: {self.place / 'mlflow.log'}")
            if time.monotonic() > end:
                raise AssertionError("the MLflow server does not answer")
            time.sleep(0.5)

    def stop_mlflow(self) -> None:
        """Kill the server."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)  # nodes.sh, nsenter and the server are one group
            self._server.wait()
            self._server = None

    def disturb(self, what: Disturbance) -> str:
        """Do it.

        Returns:
            to whom it was done, or why to nobody.
        """
        if what.kind in self._right:
            return "nothing: it lasts already"
        return str(getattr(self, f"_{what.kind}")(what))

    def put_right(self, now: float) -> list[str]:
        """Put right what has lasted long enough by ``now``; their kinds."""
        due = [kind for kind, (until, _) in self._right.items() if until <= now]
        for kind in due:
            self._right.pop(kind)[1]()
        return due

    @property
    def lasting(self) -> set[str]:
        """Kinds of what lasts now."""
        return set(self._right)

    def _until(self, what: Disturbance, right: Callable[[], None]) -> None:
        self._right[what.kind] = (what.at + what.lasts, right)

    def _rank(self, what: Disturbance) -> str:
        tasks = hosts.tasks(self.place)
        if not tasks:
            return "nothing: no job runs"
        task = tasks[int(what.pick * len(tasks))]
        task.kill()
        return f"rank {task.rank} of SLURM's job {task.job} on {task.node}"

    def _job(self, what: Disturbance) -> str:
        tasks = hosts.tasks(self.place)
        if not tasks:
            return "nothing: no job runs"
        job = tasks[int(what.pick * len(tasks))].job
        ended = [t for t in tasks if t.job == job]
        for task in ended:
            task.kill()
        return f"all {len(ended)} processes of SLURM's job {job}"

    def _driver(self, what: Disturbance) -> str:
        running = [(c, pid) for c in self.commands if (pid := c.process()) is not None]
        if not running:
            return "nothing: no driver runs"
        command, pid = running[int(what.pick * len(running))]
        os.kill(pid, signal.SIGKILL)
        return f"the driver of {command.sweep.name}"

    def _node(self, what: Disturbance) -> str:
        return f"{self._host(what, 'off', 'boot')} is off for {what.lasts:.0f} s"

    def _cable(self, what: Disturbance) -> str:
        return f"{self._host(what, 'cut', 'join')}'s cable is out for {what.lasts:.0f} s"

    def _host(self, what: Disturbance, word: str, right: str) -> str:
        """Do something to a node to which nothing else is done."""
        ill = {self._ill[kind] for kind in self._right if kind in self._ill}
        well = [name for name in hosts.names() if name not in ill]
        name = self._ill[what.kind] = well[int(what.pick * len(well))]
        hosts.do(word, name)
        self._until(what, lambda: hosts.do(right, name))
        return name

    def _disk(self, what: Disturbance) -> str:
        filler = self.disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 65536):
                pass
        self._until(what, lambda: filler.unlink(missing_ok=True))
        return f"full ({filler.stat().st_size >> 20} MB more) for {what.lasts:.0f} s"

    def _mlflow(self, what: Disturbance) -> str:
        self.stop_mlflow()
        self._until(what, self.start_mlflow)
        return f"the server is away for {what.lasts:.0f} s"

    def _slurmctld(self, what: Disturbance) -> str:
        hosts.do("daemon", "ctl", "kill")
        self._until(what, lambda: hosts.do("daemon", "ctl", "start"))
        return f"the controller is away for {what.lasts:.0f} s"
