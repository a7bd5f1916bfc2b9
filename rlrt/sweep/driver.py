"""The driver of a sweep: start jobs, watch them, retry those that may be retried, and report how they ended.

All of a driver's state is in the jobs' folders, so a new driver can continue where one ended. The driver holds the sweep's
lease and alone writes ``job.json``. It polls only the active jobs: waiting and ended jobs cost nothing.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rlrt.errors import FolderLost, Replaced, UserError
from rlrt.records.files import is_file, read_json, whole
from rlrt.records.folder import RunFolder
from rlrt.records.lease import LeaseTaken, hold_lease
from rlrt.records.storage import storing
from rlrt.sweep.cancelling import scancel, terminate
from rlrt.sweep.ending import end_in_mlflow, print_end, print_way_on, warn
from rlrt.sweep.launchers import (
    Launcher,
    SlurmLauncher,
    SlurmView,
    array_limit,
    array_suffix,
    new_name,
    slurm_states,
    submitted_as,
)
from rlrt.sweep.limit import LIMIT, PAUSE_S, Limit, Refused, submit_all
from rlrt.sweep.names import slurm_name, submitted
from rlrt.sweep.parent import bring_next, job_tags, open_parent
from rlrt.sweep.patience import Patience
from rlrt.sweep.plan import SPEC, Job, refuse_anothers
from rlrt.sweep.source import Closing, Source
from rlrt.sweep.state import LATER, JobState, job_state, last_records, planned_steps
from rlrt.sweep.table import Live, Row
from rlrt.sweep.taken import as_state, check_sweep, lost_job, seen, write_spec
from rlrt.sweep.view import LiveView

POLL_S = 0.5
"""Seconds between two polls of the active jobs."""


@dataclass
class Entry:
    """A job that a driver watches.

    Attributes:
        spec: content of its ``job.json``.
        state: state at the last poll.
        watched: True once this driver saw the job alive; a CANCELLED state counts only then.
    """

    job: Job
    spec: dict[str, Any]
    state: JobState
    watched: bool = False


class Driver:
    """Drives one sweep.

    Args:
        sweep: the sweep's folder.
        source: grid or search that provides the jobs.
        launcher: starts the jobs.
        max_retries: times that a failed or lost job is started again.
        tracking: ``tracking.*``, for the sweep's parent run in MLflow.
        out: stream for the live table and messages.
    """

    def __init__(
        self,
        sweep: Path,
        source: Source,
        launcher: Launcher,
        max_retries: int,
        tracking: Mapping[str, Any],
        out: TextIO | None = None,
    ) -> None:
        self.sweep, self.source, self.launcher, self.max_retries = sweep, source, launcher, max_retries
        self.tracking, self.out = tracking, out or sys.stdout
        self._entries: dict[Path, Entry] = {}
        self._alive: dict[Path, Entry] = {}
        self._waiting: dict[Path, Entry] = {}
        self._ended: dict[Path, JobState] = {}
        self._rows: dict[Path, Row] = {}
        self._tags: dict[str, str] = {}
        self._queue: list[Path] = []
        self._stop, self._slurm, self._patience = 0, SlurmView(), Patience()
        self._limit, self._submitted = Limit(PAUSE_S), False
        self._live, self._view = Live(self.out), LiveView(sweep, None)

    def run(self) -> int:
        """Drive until every job has ended, or a Ctrl-C.

        Returns:
            0 if all jobs finished (or were pruned), 1 if one failed, 130 after a Ctrl-C.

        Raises:
            UserError: if another driver drives this sweep or took it over, its folder is lost, or SLURM refuses the jobs.
        """
        try:
            with storing(self.sweep), hold_lease(self.sweep / "driver"), self._handling_sigint():
                return self._drive()
        except Replaced:
            raise
        except FolderLost:
            self.launcher.settle()
            raise
        except LeaseTaken as taken:
            other = taken.holder
            raise UserError(
                f"another driver (pid {other.get('pid')} on {other.get('host')}) is driving {self.sweep}; watch it with "
                f"python -m rlrt.status {self.sweep}."
            ) from None

    @contextmanager
    def _handling_sigint(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, *_: object) -> None:
        self._stop += 1
        if self._stop > 1:
            raise KeyboardInterrupt
        if not self.launcher.outlives_driver:
            self._live.say("\nCtrl-C: the local jobs save at their next step; press it again to leave at once")

    def _drive(self) -> int:
        parent = open_parent(self.sweep, self.tracking, warn)
        self._tags, self._view = job_tags(self.sweep, parent), LiveView(self.sweep, parent)
        closing: Closing | None = Closing([], 1)
        try:
            self._add(self.source.begin())
            self._recover()
            self._loop()
            self.launcher.settle()
            while self._queue:
                bring_next(self._queue, self._live.say)
            closing = self.source.close(self._ended)
            return self._close(closing)
        except Replaced:
            closing = None
            raise
        finally:
            self._live.end()
            end_in_mlflow(self.sweep, parent, closing, bool(self._alive), bool(self._stop), self._live.say)

    def _loop(self) -> None:
        while True:
            check_sweep(self.sweep)
            self._poll()
            bring_next(self._queue, self._live.say)
            self._view.follow(self._alive, self._ended, lambda: [entry.spec for entry in self._entries.values()])
            if self._stop:
                self._terminate_jobs()
            else:
                self._follow_source()
                self._start()
            if not self._alive and (self._stop or not (self._waiting or self.source.unfinished())):
                return
            if isinstance(self.launcher, SlurmLauncher) and (self._stop or not self.launcher.wait):
                return
            self._show()
            time.sleep(POLL_S)

    def _follow_source(self) -> None:
        """Let the source read the jobs' reports, then print its messages and prune the jobs that it names."""
        prune, lines = self.source.watch(self._ended)
        for line in lines:
            self._live.say(line)
        for folder in prune:
            self._prune(folder)

    def _terminate_jobs(self) -> None:
        """Signal local jobs to stop, at every poll: one that was just starting may have missed Ctrl-C."""
        if not self.launcher.outlives_driver:
            for folder in self._alive:
                terminate(folder, self._live.say)

    def _add(self, jobs: Iterable[Job]) -> None:
        """Add jobs, except those already known. They count as alive until the next poll reads their state."""
        for job in jobs:
            if job.folder in self._entries:
                continue
            refuse_anothers(job)
            entry = self._entries[job.folder] = Entry(job, {}, JobState("queued", 0, 0, "", "", {}))
            try:
                self._put_aside(job)
                if not self.source.prunes and job.folder.is_dir():
                    RunFolder(job.folder).revive()
                job.write(sweep=str(self.sweep), tags=self._tags | dict(job.tags))
            except (OSError, FolderLost) as error:
                if (ended := lost_job(error, job.folder)) is None:
                    raise
                self._end(job.folder, ended)
                continue
            entry.spec = read_json(job.folder / SPEC)
            self._alive[job.folder] = entry

    def _put_aside(self, job: Job) -> None:
        """Under ``resume=never``, move an earlier run away. Only the driver does so, once: a retried job must resume."""
        if job.plain["resume"] != "never" or not job.folder.is_dir():
            return
        known = submitted(read_json(job.folder / SPEC))
        slurm_state = (slurm_states([known]) or {known: "PENDING"})[known] if known else None
        if job_state(job.folder, slurm_state).alive:
            return
        if aside := RunFolder(job.folder).put_aside():
            self._live.say(f"resume=never: the earlier run was moved to {aside}")

    def _recover(self) -> None:
        """Recover the SLURM ids of jobs whose driver died after submitting them and before storing the ids.

        Raises:
            UserError: if jobs were submitted to SLURM and this machine has no squeue.
        """
        on_slurm = [f for f, e in self._entries.items() if slurm_name(e.spec) and not job_state(f).done]
        if on_slurm and shutil.which("squeue") is None:
            raise UserError(
                f"{self.sweep}: {len(on_slurm)} of its jobs were submitted to SLURM, and this machine has no squeue to query "
                "them; continue on a machine with SLURM, or give another hydra.sweep.dir."
            )
        ids: dict[str, str | None] = {}
        for folder, entry in self._entries.items():
            name = slurm_name(entry.spec)
            if name and entry.spec.get("slurm_id") is None:
                if name not in ids:
                    ids[name] = submitted_as(name)
                if ids[name] is not None:
                    self._note(folder, slurm_id=f"{ids[name]}{entry.spec.get('slurm_place', '')}")

    def _note(self, folder: Path, **values: Any) -> FolderLost | None:
        """Note values of a job; what its folder does not take, this driver alone knows, and the reason is returned."""
        entry = self._entries[folder]
        entry.spec |= values
        return write_spec(folder, entry.spec)

    def _poll(self) -> None:
        """Update the state of the active jobs; move those that ended to the waiting or the ended ones."""
        states = self._external_states()
        for folder, entry in list(self._alive.items()):
            external = states.get(folder)
            state = seen(folder, self._patience.awaited(folder, job_state(folder, external, entry.spec), external))
            if state.name in ("failed", "lost"):
                state = self._with_progress(folder, state)
            if state.name != entry.state.name:
                self._live.changed(folder.name, state)
            entry.state = state
            if state.alive:
                entry.watched = True
                continue
            del self._alive[folder]
            if self._should_start(entry, state, external):
                self._waiting[folder] = entry
            else:
                self._end(folder, state)

    def _with_progress(self, folder: Path, state: JobState) -> JobState:
        """Reset the retries of a job that got further than ever before: the limit is on failures without progress."""
        entry = self._entries[folder]
        reached = max((whole(r.get("step")) for r in last_records(folder)), default=0)
        if reached > whole(entry.spec.get("reached")):
            self._note(folder, reached=reached, retries=0)
            return dataclasses.replace(state, retries=0)
        return state

    def _should_start(self, entry: Entry, state: JobState, external: str | None) -> bool:
        """True if a job that is not alive should be started; ``external`` is what ``_external_states`` says of it."""
        if entry.watched and external == "CANCELLED":
            return False
        limits_changed = state.failure == "memory" and entry.spec.get("place") not in (None, self.launcher.limits())
        if state.failure in LATER or limits_changed:
            return not entry.watched  # a new command: the user may have removed the cause
        return state.runnable(self.max_retries)

    def _end(self, folder: Path, state: JobState) -> None:
        self._ended[folder] = self._entries[folder].state = state
        self._rows[folder] = self._row(folder)
        if self._driver_must_upload(folder):
            self._queue.append(folder)

    def _driver_must_upload(self, folder: Path) -> bool:
        """True if the driver must upload an ended job's run: on SLURM with SQLite, which nodes must not share."""
        sqlite = str(self.tracking.get("uri")).startswith("sqlite:") or self.tracking.get("trackio") is not None
        complete = read_json(folder / "summary.json").get("mlflow_complete") is True
        return self.launcher.outlives_driver and sqlite and not complete and is_file(folder / "config.yaml")

    def _external_states(self) -> dict[Path, str]:
        """Return the state that SLURM or this machine's processes give for each submitted job."""
        jobs = {f: job for f, e in self._alive.items() if (job := submitted(e.spec))}
        states = self._slurm.states(list(jobs.values()), self._live.say)
        return {f: states[job] for f, job in jobs.items()} | self.launcher.process_states()

    def _start(self) -> None:
        """Start waiting jobs and ask the source for more, as far as the launcher has room."""
        room = self.launcher.room(len(self._alive))
        if room > len(self._waiting):
            more = self.source.more(room - len(self._waiting))
            if more:
                self._add(more)
                self._poll()
                room = self.launcher.room(len(self._alive))
        allowed = self._limit.room(len(self._alive))
        batch = list(self._waiting)[: max(0, room if allowed is None else min(room, allowed))]
        if not batch:
            return
        error = submit_all(batch, array_limit() if self.launcher.outlives_driver else len(batch), self._submit)
        if error is None:
            self._limit.taken()
            return
        waits = self._submitted and isinstance(error, Refused) and LIMIT.search(str(error))
        if not self._alive and not waits:
            raise error
        if said := self._limit.refused(error, len(self._alive)):
            self._live.say(said)

    def _submit(self, folders: Sequence[Path]) -> None:
        """Start jobs; on SLURM as one array. Its name is stored before the submission, its ids afterwards."""
        check_sweep(self.sweep)
        slurm, name = self.launcher.outlives_driver, new_name(self.sweep)
        for folder in folders:
            if lost := self._note(
                folder, slurm_id=None, place=self.launcher.limits(), slurm_name=name if slurm else None
            ):
                del self._waiting[folder]
                self._end(folder, as_state(lost, self._entries[folder].state))
        folders = [folder for folder in folders if folder in self._waiting]
        if not folders:
            return
        for index, folder in enumerate(folders):
            self._note(folder, slurm_place=array_suffix(folders, index))
        try:
            ids = self.launcher.submit(folders, self.sweep, name)
        except Refused:
            for folder in folders:
                self._note(folder, slurm_name=None)
            raise
        except OSError as error:
            for folder in folders:
                if (ended := lost_job(error, self.sweep, self._entries[folder].state)) is None:
                    raise
                del self._waiting[folder]
                self._end(folder, ended)
            return
        self._submitted = True
        for folder in folders:
            again = self._entries[folder].state.name in ("failed", "lost")
            retries = whole(self._entries[folder].spec.get("retries")) + again
            self._note(folder, retries=retries, slurm_id=ids.get(folder))
            self._alive[folder] = self._waiting.pop(folder)
            self._alive[folder].watched = True
        self._slurm.ask_anew()

    def _prune(self, folder: Path) -> None:
        """Stop a job for good: a running job sees the prune mark at its next step, a waiting job never starts."""
        if folder in self._ended or not folder.is_dir():  # the next poll ends one that is not there
            return
        entry = self._entries[folder]
        run_folder = RunFolder(folder)
        run_folder.ask_to_prune()
        if folder in self._alive and entry.state.name == "running":
            return
        if folder in self._alive and (known := submitted(entry.spec)):
            scancel([known])
        run_folder.set_state("pruned", step=entry.state.step)
        self._alive.pop(folder, None)
        self._waiting.pop(folder, None)
        self._end(folder, job_state(folder, None, entry.spec))

    def _row(self, folder: Path) -> Row:
        entry = self._entries[folder]
        records = last_records(folder) if entry.state.name != "queued" else []
        steps = int(entry.job.plain.get("train", {}).get("steps") or planned_steps(folder))  # may be the text "7"
        return Row(folder.name, entry.state, records, steps)

    def _show(self) -> None:
        if self._live.due():
            now = {folder: self._row(folder) for folder in self._alive}
            waiting = [Row(f.name, e.state, [], 0) for f, e in self._waiting.items()]
            self._live.show([*now.values(), *waiting, *self._rows.values()], self.source.headline())

    def _close(self, closing: Closing) -> int:
        self._live.end()
        rows = [self._rows.get(folder) or self._row(folder) for folder in self._entries]
        print_end(self.out, self.sweep, rows, self._ended, closing, self.max_retries)
        print_way_on(self.out, self.sweep, bool(self._stop), len(self._waiting), bool(self._alive))
        return 130 if self._stop else closing.code
