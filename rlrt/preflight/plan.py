"""What was typed, composed as ``rlrt.run`` would: the jobs, where they run, and where they write; nothing is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.config.compose import composer
from rlrt.config.load import load
from rlrt.config.rerun import expand
from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.records.names import name_sweep
from rlrt.sweep.jobs import job_of, named, own, plain, planned
from rlrt.sweep.plan import Job, is_axis
from rlrt.sweep.settings import launcher_of


@dataclass(frozen=True)
class Planned:
    """What would run.

    Attributes:
        jobs: every distinct one with its settings; of a search, the one that its trials have in common.
        count: how many will run.
        launcher: where (``hydra.launcher``).
        folder: of the run or the sweep.
        several: whether it is a sweep.
    """

    jobs: list[tuple[Job, Settings]]
    count: int
    launcher: Any
    folder: Path
    several: bool


def plan(arguments: Sequence[str], several: bool, config_dirs: Sequence[str] = ()) -> Planned:
    """The jobs behind a command line.

    Raises:
        UserError: what ``rlrt.run`` would say.
    """
    overrides = expand(arguments, config_dirs)
    name_sweep(overrides)
    with composer(config_dirs) as compose:
        base = compose([o for o in overrides if not several or not is_axis(o)])
        launcher = launcher_of(plain(base.hydra.launcher))
        if several:
            folder = Path(str(base.hydra.sweep.dir))
            jobs, count = planned(base, overrides, folder, compose)
            jobs = named(folder, jobs)
        else:
            folder, count = Path(str(base.hydra.run.dir)), 1
            jobs = [job_of(folder.parent, tuple(own(overrides)), compose)]
    return Planned([(job, loaded(job, several)) for job in jobs], count, launcher, folder, several)


def loaded(job: Job, several: bool) -> Settings:
    """A job's settings.

    Raises:
        UserError: where it cannot work; of a sweep with its overrides.
    """
    try:
        return load(job.plain, job.choices, job.overrides)
    except UserError as error:
        raise UserError(f"{error} (in the job {' '.join(job.overrides)})" if several else str(error)) from None
