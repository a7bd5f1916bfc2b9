"""The loop between plan and jobs: start what should run, watch it, try again what may be tried again, say how it ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from rlrt.errors import UserError
from rlrt.folder import read_json, write_json
from rlrt.sweep.launchers import ALIVE, LocalLauncher, SlurmLauncher, slurm_states, submitted_as
from rlrt.sweep.lease import Held, hold, holder
from rlrt.sweep.plan import SPEC, Job
from rlrt.sweep.state import LEASE, JobState, job_state, last_record, planned_steps
from rlrt.sweep.table import Live, Row, table
from rlrt.trackers.mlflow import MlflowTracker

POLL_S = 0.5
"""Seconds between two looks at the jobs that have not ended."""


class Driver:
    """Drives one sweep. All it knows is in the jobs' folders, so another driver can go on where this one ended.

    Args:
        sweep: the sweep's folder.
        jobs: its jobs.
        launcher: where they run.
        max_retries: times that a failed or lost job is started again.
        out: where a person looks.
    """

    def __init__(
        self,
        sweep: Path,
        jobs: Sequence[Job],
        launcher: LocalLauncher | SlurmLauncher,
        max_retries: int,
        out: TextIO | None = None,
    ) -> None:
        self.sweep, self.jobs, self.launcher, self.max_retries = sweep, list(jobs), launcher, max_retries
        self.out = out or sys.stdout
        self._stop, self._asked = 0, -10.0
        self._known: dict[str, str] = {}

    def run(self) -> int:
        """Drive until every job has ended, or a Ctrl-C.

        Returns:
            0 if all jobs finished (or were pruned), 1 if one failed, 130 after a Ctrl-C.

        Raises:
            UserError: if another driver is at work on this sweep.
        """
        if isinstance(self.launcher, SlurmLauncher):
            self.launcher.check()
            if self.launcher.dry_run:
                print(self.launcher.script(len(self.jobs), self.sweep), file=self.out)
                return 0
        try:
            with hold(self.sweep / "driver"):
                before = signal.signal(signal.SIGINT, self._interrupt)
                try:
                    return self._drive()
                finally:
                    signal.signal(signal.SIGINT, before)
        except Held as held:
            who = held.who
            raise UserError(
                f"another driver (pid {who.get('pid')} on {who.get('host')}) is at work on {self.sweep}; watch it with "
                f"python -m rlrt.status {self.sweep}."
            ) from None

    def _interrupt(self, *_: object) -> None:
        self._stop += 1
        if self._stop > 1:
            raise KeyboardInterrupt
        if isinstance(self.launcher, LocalLauncher):
            print(
                "\nCtrl-C: the jobs here save at their next step; once more to leave at once", file=self.out, flush=True
            )

    def _drive(self) -> int:
        parent = self._open_parent()
        tags = {"rlrt.sweep": self.sweep.name} | (
            {"mlflow.parentRunId": parent.run_id} if parent and parent.run_id else {}
        )
        for job in self.jobs:
            job.write(sweep=str(self.sweep), tags=tags)
        if isinstance(self.launcher, SlurmLauncher):
            self._recover()
        try:
            return self._loop()
        finally:
            self._replay()
            if parent is not None:
                parent.close("KILLED" if self._stop else "FINISHED")

    def _open_parent(self) -> MlflowTracker | None:
        """The sweep's own run in MLflow, the parent of its jobs' runs; the same one when the sweep goes on."""
        tracking = self.jobs[0].plain["tracking"] if self.jobs else {}
        if not tracking.get("uri"):
            return None
        note = self.sweep / "sweep.json"
        parent = MlflowTracker(
            uri=tracking["uri"],
            experiment=tracking["experiment"],
            artifacts=tracking["artifacts"],
            run_id=read_json(note).get("mlflow_run_id"),
            name=self.sweep.name,
            tags={
                "rlrt.sweep": self.sweep.name,
                "rlrt.jobs": str(len(self.jobs)),
                "rlrt.folder": str(self.sweep.resolve()),
            },
            params={},
            warn=lambda text: print(f"WARNING: {text}", file=sys.stderr),
        )
        if parent.wait_for_run(60):
            write_json(note, {"mlflow_run_id": parent.run_id})
        return parent

    def _replay(self) -> None:
        """Bring to MLflow what jobs left to the driver (SQLite under SLURM)."""
        from rlrt.build import replay

        if not isinstance(self.launcher, SlurmLauncher):
            return
        for job in self.jobs:
            missed = read_json(job.folder / "summary.json").get("mlflow_complete") is not True
            if missed and job.plain["tracking"].get("uri") and self.state(job.folder).done:
                replay(job.folder)

    def _loop(self) -> int:
        open_jobs = [job.folder for job in self.jobs]
        rows: dict[Path, Row] = {}
        with Live(self.out) as live:
            while True:
                now = {folder: self.state(folder) for folder in open_jobs}
                rows |= {folder: self._row(folder, state) for folder, state in now.items()}
                open_jobs = [folder for folder, state in now.items() if self._is_open(folder, state)]
                busy = any(now[f].name == "running" or self._starting(f) for f in open_jobs)
                if not open_jobs or (self._stop and not busy):
                    break
                if not self._stop:
                    self._start({folder: now[folder] for folder in open_jobs})
                if isinstance(self.launcher, SlurmLauncher) and (self._stop or not self.launcher.wait):
                    break
                live.show(list(rows.values()), len(self.jobs) - len(open_jobs))
                time.sleep(POLL_S)
        return self._close()

    def _is_open(self, folder: Path, state: JobState) -> bool:
        """Whether a job runs, is about to, or should; jobs that have ended are never looked at again."""
        return state.name == "running" or self._starting(folder) or state.runnable(self.max_retries)

    def _starting(self, folder: Path) -> bool:
        return isinstance(self.launcher, LocalLauncher) and self.launcher.starting(folder)

    def state(self, folder: Path) -> JobState:
        """A job's state by its folder, and where it was submitted to SLURM by what SLURM says."""
        return slurm_aware(folder, self._slurm_now())

    def _slurm_now(self) -> dict[str, str]:
        """What SLURM says of all submitted jobs; asked at most every two seconds."""
        if time.monotonic() - self._asked > 2.0:
            ids = [str(i) for job in self.jobs if (i := read_json(job.folder / SPEC).get("slurm_id"))]
            self._known = dict(slurm_states(ids)) if ids else {}
            self._asked = time.monotonic()
        return self._known

    def _start(self, states: dict[Path, JobState]) -> None:
        """Start what should run and does not, as far as there is room."""
        waiting = [f for f, s in states.items() if s.name != "running" and not self._starting(f)]
        if isinstance(self.launcher, LocalLauncher):
            waiting = waiting[: max(0, self.launcher.slots())]
        if not waiting:
            return
        for folder in waiting:
            spec, again = read_json(folder / SPEC), states[folder].name in ("failed", "lost")
            write_json(folder / SPEC, spec | {"retries": int(spec.get("retries", 0)) + again})
        if isinstance(self.launcher, LocalLauncher):
            self.launcher.submit(waiting, self.sweep)
            return
        name = self.launcher.new_name(self.sweep)
        for index, folder in enumerate(waiting):
            place = "" if len(waiting) == 1 else f"_{index}"  # submitit makes no array of one job
            write_json(
                folder / SPEC, read_json(folder / SPEC) | {"slurm_name": name, "slurm_place": place, "slurm_id": None}
            )
        for folder, slurm_id in self.launcher.submit(waiting, self.sweep, name).items():
            write_json(folder / SPEC, read_json(folder / SPEC) | {"slurm_id": slurm_id})
        self._asked = -10.0

    def _recover(self) -> None:
        """Find the ids of jobs whose driver died between submitting them and noting their ids."""
        found: dict[str, str | None] = {}
        for job in self.jobs:
            spec = read_json(job.folder / SPEC)
            name = spec.get("slurm_name")
            if name and spec.get("slurm_id") is None:
                if name not in found:
                    found[name] = submitted_as(name)
                if found[name] is not None:
                    write_json(job.folder / SPEC, spec | {"slurm_id": f"{found[name]}{spec['slurm_place']}"})

    def _row(self, folder: Path, state: JobState) -> Row:
        return folder.name, state, last_record(folder), planned_steps(folder)

    def _close(self) -> int:
        states = {job.folder: self.state(job.folder) for job in self.jobs}
        print(table([self._row(folder, state) for folder, state in states.items()]), file=self.out)
        counts = Counter(state.name for state in states.values())
        print(", ".join(f"{n} {name}" for name, n in sorted(counts.items())) + f"; {self.sweep}", file=self.out)
        for folder, state in states.items():
            if state.name in ("failed", "lost"):
                why = state.error or "its process was killed"
                print(f"failed: {folder.name}: {why}; see {folder / 'log.txt'}", file=self.out)
        if self._stop:
            print(
                f"come back with the same command, or stop its jobs: python -m rlrt.cancel {self.sweep}", file=self.out
            )
            return 130
        leaves = isinstance(self.launcher, SlurmLauncher) and not self.launcher.wait
        if leaves:
            print(f"watch: python -m rlrt.status {self.sweep}", file=self.out)
        return int(any(s.name in ("failed", "lost") for s in states.values()))


def slurm_aware(folder: Path, known: dict[str, str]) -> JobState:
    """A job's state; one that SLURM still has is running (or queued there), whatever its folder last said."""
    state = job_state(folder)
    slurm_id = read_json(folder / SPEC).get("slurm_id")
    says = known.get(str(slurm_id), "")
    if state.done or slurm_id is None:
        return state
    if says in ALIVE:
        return JobState("running", state.step, state.retries, "", "", state.final)
    if says == "OUT_OF_MEMORY" and state.name == "lost":
        why = "SLURM ended it for using more memory than it asked for; raise hydra.launcher.mem_gb"
        return JobState("failed", state.step, state.retries, "memory", why, state.final)
    return state


def cancel(sweep: Path, folders: Sequence[Path], say: Callable[[str], None]) -> int:
    """Ask every living job of a sweep to save and end, here by a signal and on SLURM by ``scancel``.

    Returns:
        how many jobs were told.
    """
    told = 0
    for folder in folders:
        spec = read_json(folder / SPEC)
        if slurm_id := spec.get("slurm_id"):
            subprocess.run(["scancel", str(slurm_id)], capture_output=True, check=False)
        elif job_state(folder).name == "running":
            who = holder(folder / LEASE)
            if who.get("host") != socket.gethostname():
                say(f"{folder.name} runs on {who.get('host')}: cancel it there")
                continue
            os.kill(int(who["pid"]), signal.SIGTERM)
        else:
            continue
        told += 1
    return told
