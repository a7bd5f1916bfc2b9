"""Build jobs from overrides: compose and check their configs, and assign each a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.checks import check_installed
from rlrt.config.compose import plain_of
from rlrt.config.load import load
from rlrt.config.refused import explain
from rlrt.errors import UserError
from rlrt.keys import LARGEST
from rlrt.records.identity import identity
from rlrt.records.names import readable
from rlrt.sweep.launchers import Launcher, LocalLauncher, SlurmLauncher
from rlrt.sweep.plan import Job, axis_text, grid_jobs
from rlrt.sweep.settings import GridKeys, RaceKeys, grid_of, search_of
from rlrt.sweep.state import job_folders

Compose = Callable[[Sequence[str]], Any]


def checked(folder: Path, overrides: Sequence[str], compose: Compose, here: bool = False) -> Job:
    """Compose a job and check its config (``here``: of ``check``).

    Raises:
        UserError: if the config does not compose or cannot work.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        job = job_of(folder, tuple(overrides), compose)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{explain(error, overrides)} (in the job {' '.join(overrides)})") from None
    check(job, here)
    return job


def job_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that belong to the jobs, without those of Hydra's own section."""
    return [o for o in overrides if not o.lstrip("+~").startswith(("hydra.", "hydra/"))]


def check(job: Job, here: bool = False) -> None:
    """Refuse a job whose config cannot work, before any job of the sweep starts.

    Args:
        here: also refuse one that needs what is not installed here; a job runs with the Python that submits it.

    Raises:
        UserError: with the job's overrides.
    """
    try:
        settings = load(job.plain, job.choices, job.overrides)
        if here:
            check_installed(settings)
    except UserError as error:
        raise UserError(f"{error} (in the job {' '.join(job.overrides)})") from None


def planned(base: Any, overrides: Sequence[str], folder: Path, compose: Compose) -> tuple[list[Job], int]:
    """Return the jobs of a grid, or the shared base job of a search's trials, or the arms of a race; and the number of jobs
    that will run (of a race: at most).

    No job is started.
    """
    values = plain(base.hydra.sweeper)
    kind = values.pop("kind", None)
    if kind == "race":
        race, jobs = race_planned(values, overrides, folder, compose, group_folders(base))
        return jobs, len(jobs) * race.max_seeds
    if kind == "optuna":
        plan, fixed, _ = search_of(
            values,
            job_overrides(overrides),
            lambda o: checked(folder, o, compose),
            LocalLauncher(1, None, 1, 1, None),
            group_folders(base),
        )
        return [checked(folder, fixed, compose)], plan.jobs
    _, jobs = grid_planned(values, overrides, folder, compose, group_folders(base))
    return jobs, len(jobs)


def grid_planned(
    values: Mapping[str, Any], overrides: Sequence[str], folder: Path, compose: Compose, folders: Sequence[Path]
) -> tuple[GridKeys, list[Job]]:
    """Return the checked ``hydra.sweeper`` of a grid, and its jobs.

    Raises:
        UserError: for settings that cannot work, or too many jobs.
    """
    sweeper = grid_of(values, GridKeys, "grid")
    return sweeper, jobs_of_grid(sweeper, overrides, folder, compose, folders)


def jobs_of_grid(
    sweeper: GridKeys, overrides: Sequence[str], folder: Path, compose: Compose, folders: Sequence[Path]
) -> list[Job]:
    """Return the jobs of a grid, given its checked keys; errors as ``grid_planned``."""
    return grid_jobs(
        job_overrides(overrides),
        sweeper.params or {},
        sweeper.grids or [],
        lambda o: job_of(folder, o, compose),
        zipped=sweeper.zip or [],
        max_jobs=sweeper.max_jobs,
        folders=folders,
    )


def race_planned(
    values: Mapping[str, Any], overrides: Sequence[str], folder: Path, compose: Compose, folders: Sequence[Path]
) -> tuple[RaceKeys, list[Job]]:
    """Return the checked ``hydra.sweeper`` of a race, and a job for each arm, the baseline first; its seed is not the race's.

    Raises:
        UserError: for settings that cannot work: seeds that were typed, fewer than two arms, no baseline, too many jobs.
    """
    race = grid_of(values, RaceKeys, "race")
    jobs = jobs_of_grid(race, overrides, folder, compose, folders)
    if any(o.lstrip("+").startswith("seed=") for job in jobs for o in job.overrides):
        raise UserError(
            "seed: a race gives its own seeds, the same to every arm; leave seed out, or set hydra.sweeper.first_seed."
        )
    if len(jobs) < 2:
        raise UserError(
            "hydra/sweeper=race: expected a baseline and at least one other arm, got one combination; type several values, "
            "such as method=grpo,rlrt."
        )
    total = len(jobs) * race.max_seeds
    if total > race.max_jobs:
        raise UserError(
            f"hydra.sweeper.max_seeds: this race has {total} jobs at most, more than the {race.max_jobs} of "
            f"hydra.sweeper.max_jobs; set fewer seeds, or hydra.sweeper.max_jobs={total}."
        )
    if race.first_seed + race.max_seeds > LARGEST:
        raise UserError(f"hydra.sweeper.first_seed: expected the last seed to be at most {LARGEST}, got more.")
    first = baseline_of(race.baseline, jobs)
    return race, [first, *(job for job in jobs if job is not first)]


def baseline_of(typed: Mapping[str, Any] | None, jobs: Sequence[Job]) -> Job:
    """Return the job that has the values of ``hydra.sweeper.baseline`` (key to value); the first one without any.

    Raises:
        UserError: if none or several have them.
    """
    wanted = [f"{name}={axis_text(name, value)}" for name, value in (typed or {}).items()]
    found = [job for job in jobs if set(wanted) <= set(job.overrides)]
    if wanted and len(found) != 1:
        raise UserError(
            f"hydra.sweeper.baseline: expected values that exactly one arm has, got {' '.join(wanted)}, which {len(found)} of "
            f"{len(jobs)} have."
        )
    return found[0]


def group_folders(base: Any) -> list[Path]:
    """Return the folders in which Hydra looked for config groups: the shipped ones, and those that were given."""
    sources = base.hydra.runtime.config_sources
    return [Path(str(source.path)) for source in sources if source.schema == "file"]


def job_of(folder: Path, overrides: tuple[str, ...], compose: Callable[[Sequence[str]], Any]) -> Job:
    """Compose a job from overrides; its folder is named after them and the job's identity."""
    values, choices = plain_of(compose(overrides))
    short = identity(values)
    return Job(folder / f"{readable(overrides, 'default')}-{short}", overrides, values, choices, short)


def assign_folders(sweep: Path, jobs: Sequence[Job]) -> list[Job]:
    """Assign each job a folder named after the overrides that not all jobs share (those name the sweep's folder)."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set[str]()
    folders = folders_by_identity(sweep)
    return [with_folder(sweep, job, [o for o in job.overrides if o not in common], folders) for job in jobs]


def with_folder(sweep: Path, job: Job, overrides: Sequence[str], folders: MutableMapping[str, Path]) -> Job:
    """Assign a job the folder that its identity already has, whatever its name, or a new one named after ``overrides``.

    Args:
        folders: the folder of each identity; a new one is added.
    """
    new = sweep / f"{readable(overrides, 'default')}-{job.identity}"
    return dataclasses.replace(job, folder=folders.setdefault(job.identity, new))


def folders_by_identity(sweep: Path) -> dict[str, Path]:
    """Return the existing job folders of a sweep by the jobs' identities."""
    return {folder.name.rsplit("-", 1)[-1]: folder for folder in job_folders(sweep)}


def plain(value: Any) -> Any:
    """Convert a part of Hydra's section to plain values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True)


def with_gpus(launcher: Launcher, jobs: Sequence[Job]) -> Launcher:
    """Return a launcher with its GPUs decided: one for each process, and those of a server that each job starts; on SLURM none
    if every job says ``device=cpu``.

    Raises:
        UserError: for fewer GPUs than a job's processes and server take.
    """
    tasks = launcher.tasks_per_node
    on_cpu = all(job.plain.get("device") == "cpu" for job in jobs)
    server = max((server_gpus(job.plain) for job in jobs), default=0)
    needed = server + (0 if on_cpu else tasks)
    given = launcher.gpus_per_node
    if given is None and (isinstance(launcher, SlurmLauncher) or (server and launcher.cards())):
        return dataclasses.replace(launcher, gpus_per_node=needed)
    if server and given and given < needed:
        raise UserError(
            f"hydra.launcher.gpus_per_node: a job gets {given} GPUs on a node, and its {tasks} processes there and its server "
            f"(engine.gpus) take {needed}; set hydra.launcher.tasks_per_node={max(1, given - server)} or "
            f"hydra.launcher.gpus_per_node={needed}."
        )
    return launcher


def server_gpus(plain: Mapping[str, Any]) -> int:
    """Return the GPUs of the server that a job starts (``engine.start``): ``engine.gpus``, or one; 0 without such a server."""
    engine = plain.get("engine")
    if not isinstance(engine, Mapping) or engine.get("start") is not True:
        return 0
    gpus = engine.get("gpus")
    return int(gpus) if isinstance(gpus, int) else int(plain.get("device") != "cpu")
