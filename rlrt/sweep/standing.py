"""How the jobs and the drivers of sweeps stand, by their folders, their leases and SLURM, for whoever does not drive them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.records.claims import moving
from rlrt.records.files import mapping, read_json, whole
from rlrt.records.lease import LEASE, holder, is_held
from rlrt.sweep.launchers import slurm_states
from rlrt.sweep.names import submitted
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import DONE, JobState, job_state, last_records
from rlrt.sweep.table import Row

SILENT = "squeue does not answer: the states of jobs on SLURM come from their folders alone"


def states_of(folders: Sequence[Path]) -> tuple[dict[Path, tuple[JobState, int]], bool]:
    """Return (state and planned steps of every job, True if SLURM was queried and did not answer). A job whose lock is free and
    whose claim moves is running: locks do not reach every machine everywhere."""
    specs = {f: read_json(f / SPEC) for f in folders}
    jobs = {f: job for f, s in specs.items() if (job := submitted(s))}
    slurm = slurm_states([job for f, job in jobs.items() if read_json(f / "summary.json").get("state") not in DONE])
    external = {} if slurm is None else {f: slurm[job] for f, job in jobs.items() if job in slurm}
    steps = {f: whole(mapping(mapping(s.get("plain")).get("train")).get("steps")) for f, s in specs.items()}
    states = {f: job_state(f, external.get(f), specs[f]) for f in folders}
    for lease in moving(f / LEASE for f, state in states.items() if state.name == "lost"):
        states[lease.parent] = job_state(lease.parent, "RUNNING", specs[lease.parent])
    return {f: (state, steps[f]) for f, state in states.items()}, slurm is None


def drivers_of(sweeps: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Return, for each sweep that a process drives, the note of that process, as far as can be seen from here."""
    driven = {sweep: holder(sweep / "driver") for sweep in sweeps if is_held(sweep / "driver")}
    elsewhere = moving(sweep / "driver" for sweep in sweeps if sweep not in driven)
    return driven | {driver.parent: note for driver, note in elsewhere.items()}


def driver_of(sweep: Path) -> dict[str, Any]:
    """Return the note of the process that drives a sweep; {} if none does, as far as can be seen from here."""
    return drivers_of([sweep]).get(sweep, {})


def rows_of(states: Mapping[Path, tuple[JobState, int]]) -> list[Row]:
    """Return the rows of a table of jobs; the record of one that waits is not read."""
    return [
        Row(folder.name, state, last_records(folder) if state.name != "queued" else [], steps)
        for folder, (state, steps) in states.items()
    ]
