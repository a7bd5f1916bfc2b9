"""Compose a command line as ``rlrt.run`` would: the jobs, their launcher, and their folders; nothing is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.config.compose import composer
from rlrt.config.load import load
from rlrt.config.rerun import expand
from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.execution.parts import Parts
from rlrt.records.names import name_sweep
from rlrt.sweep.jobs import assign_folders, job_of, job_overrides, plain, planned, with_gpus
from rlrt.sweep.plan import Job, of_the_whole
from rlrt.sweep.settings import launcher_of


@dataclass(frozen=True)
class Planned:
    """The jobs that a command would run.

    Attributes:
        jobs: every distinct job with its settings; for a search, the job that all trials share.
        count: number of jobs that will run.
        launcher: the launcher (``hydra.launcher``).
        folder: folder of the run or the sweep.
        several: True for a sweep.
        parts: the parts of each job whose data has been read, by the job's identity.
    """

    jobs: list[tuple[Job, Settings]]
    count: int
    launcher: Any
    folder: Path
    several: bool
    parts: dict[str, Parts] = field(default_factory=dict)


def plan(arguments: Sequence[str], several: bool, config_dirs: Sequence[str] = ()) -> Planned:
    """Return the jobs behind a command line.

    Raises:
        UserError: if ``rlrt.run`` would refuse the command line.
    """
    overrides = expand(arguments, config_dirs)
    name_sweep(overrides)
    with composer(config_dirs) as compose:
        base = compose(of_the_whole(overrides) if several else overrides)
        launcher = launcher_of(plain(base.hydra.launcher))
        if several:
            folder = Path(str(base.hydra.sweep.dir))
            jobs, count = planned(base, overrides, folder, compose)
            jobs = assign_folders(folder, jobs)
        else:
            folder, count = Path(str(base.hydra.run.dir)), 1
            jobs = [job_of(folder.parent, tuple(job_overrides(overrides)), compose)]
    launcher = with_gpus(launcher, jobs)
    return Planned([(job, loaded(job, several)) for job in jobs], count, launcher, folder, several)


def loaded(job: Job, several: bool) -> Settings:
    """Return a job's settings.

    Raises:
        UserError: for invalid settings; for a sweep with the job's overrides.
    """
    try:
        return load(job.plain, job.choices, job.overrides)
    except UserError as error:
        raise UserError(f"{error} (in the job {' '.join(job.overrides)})" if several else str(error)) from None
