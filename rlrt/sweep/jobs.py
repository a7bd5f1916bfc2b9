"""Jobs from what was typed: composed, checked, and each in a folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.load import load
from rlrt.errors import UserError, first_line
from rlrt.records.identity import identity
from rlrt.records.names import readable
from rlrt.sweep.launchers import LocalLauncher
from rlrt.sweep.plan import Job, grid_jobs
from rlrt.sweep.settings import grid_of, search_of
from rlrt.sweep.state import job_folders

Compose = Callable[[Sequence[str]], Any]


def checked(folder: Path, overrides: Sequence[str], compose: Compose) -> Job:
    """A job whose config has been checked.

    Raises:
        UserError: where it does not compose or cannot work.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        job = job_of(folder, tuple(overrides), compose)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join(overrides)}: {first_line(error)}") from None
    check(job)
    return job


def own(overrides: Sequence[str]) -> list[str]:
    """The overrides that jobs are made of: not those of Hydra's own section."""
    return [o for o in overrides if not o.lstrip("+~").startswith(("hydra.", "hydra/"))]


def check(job: Job) -> None:
    """Refuse a job whose config cannot work, before anything of the sweep starts.

    Raises:
        UserError: with the job's overrides.
    """
    try:
        load(job.plain, job.choices, job.overrides)
    except UserError as error:
        raise UserError(f"{error} (in the job {' '.join(job.overrides)})") from None


def planned(base: Any, overrides: Sequence[str], folder: Path, compose: Compose) -> tuple[list[Job], int]:
    """The jobs of a grid, or of a search the one that its trials have in common; and how many will run. Nothing is started."""
    values = plain(base.hydra.sweeper)
    if values.pop("kind", None) == "optuna":
        plan, fixed, _ = search_of(
            values, own(overrides), lambda o: checked(folder, o, compose), LocalLauncher(1, None, 1)
        )
        return [checked(folder, fixed, compose)], plan.n_trials * max(1, len(plan.seeds))
    sweeper = grid_of(values)
    axes = (own(overrides), sweeper.params or {}, sweeper.grids or [])
    jobs = grid_jobs(*axes, lambda o: job_of(folder, o, compose))
    return jobs, len(jobs)


def job_of(folder: Path, overrides: tuple[str, ...], compose: Callable[[Sequence[str]], Any]) -> Job:
    """The job that overrides compose to; its folder is named after them and its identity."""
    from omegaconf import OmegaConf

    composed = compose(overrides)
    keys = [str(k) for k in composed if k != "hydra"]
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, keys), resolve=True)
    choices = {k: str(v) for k, v in composed.hydra.runtime.choices.items() if "/" not in k and v is not None}
    short = identity(values)
    return Job(folder / f"{readable(overrides, 'default')}-{short}", overrides, values, choices, short)


def named(sweep: Path, jobs: Sequence[Job]) -> list[Job]:
    """Jobs in folders named after what tells them apart; the sweep's folder is named after the rest."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set[str]()
    known = folders_by_identity(sweep)
    return [placed(sweep, job, [o for o in job.overrides if o not in common], known) for job in jobs]


def placed(sweep: Path, job: Job, telling: Sequence[str], known: MutableMapping[str, Path]) -> Job:
    """A job in its folder: the one that its identity has already, whatever its name, or a new one named after ``telling``.

    Args:
        known: the folder of each identity; a new one is added.
    """
    new = sweep / f"{readable(telling, 'default')}-{job.identity}"
    return dataclasses.replace(job, folder=known.setdefault(job.identity, new))


def folders_by_identity(sweep: Path) -> dict[str, Path]:
    """The folders of jobs that a sweep has already."""
    return {folder.name.rsplit("-", 1)[-1]: folder for folder in job_folders(sweep)}


def plain(value: Any) -> Any:
    """A part of Hydra's section as plain values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True)
