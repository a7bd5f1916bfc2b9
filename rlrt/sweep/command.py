"""``python -m rlrt.run -m``: plan a sweep from the command line and drive it. Hydra composes configs; rlrt runs the loop.

Hydra's own sweepers and launchers are not used: see docs/architecture.md, "Plugins of others".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.compose import composer
from rlrt.config.load import load
from rlrt.errors import UserError
from rlrt.paths import SWEEPS, listed
from rlrt.records.files import resolved
from rlrt.records.secrets import redacted
from rlrt.records.stored_config import config_text
from rlrt.sweep.disk import check_disk
from rlrt.sweep.driver import Driver
from rlrt.sweep.jobs import (
    Compose,
    assign_folders,
    check,
    checked,
    folders_by_identity,
    grid_planned,
    group_folders,
    job_overrides,
    plain,
    planned,
    race_planned,
    with_folder,
    with_gpus,
)
from rlrt.sweep.launchers import Launcher, SlurmLauncher
from rlrt.sweep.parent import note_question
from rlrt.sweep.plan import Job, of_the_whole
from rlrt.sweep.sbatch import check_folder
from rlrt.sweep.settings import launcher_of, metric_of, refuse_leaving, search_of
from rlrt.sweep.source import Grid, Source
from rlrt.sweep.state import job_folders, job_state


def sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """Plan the jobs of a sweep and drive them.

    Args:
        overrides: overrides of the command line, in Hydra's grammar.
        config_dirs: further folders with config groups (Hydra's ``--config-dir``).

    Returns:
        the exit code: 0 if every job finished.

    Raises:
        UserError: for an error that the user can correct; no job has been started.
    """
    with composer(config_dirs) as compose:
        base = compose(of_the_whole(overrides))
        folder = Path(str(base.hydra.sweep.dir))
        refuse_no_sweeps_folder(folder)
        launcher = launcher_of(plain(base.hydra.launcher))
        source, retries, first, jobs = source_of(base, overrides, folder, compose, launcher)
        launcher = with_gpus(launcher, jobs)
        launcher.check()
        check_folder(folder, on_slurm=launcher.outlives_driver)
        if isinstance(launcher, SlurmLauncher) and launcher.dry_run:
            print(launcher.script(min(first, launcher.room(0)), folder))
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        study = next((o.split("=", 1)[1] for o in overrides if o.startswith("+sweep=")), None)
        arguments = [*(part for path in config_dirs for part in ("--config-dir", path)), *overrides]
        note_question(folder, arguments, SWEEPS / "sweep" / f"{study}.yaml" if study else None)
        return Driver(folder, source, launcher, retries, plain(base.tracking)).run()


def refuse_no_sweeps_folder(folder: Path) -> None:
    """Refuse the current folder and the folder of a run as a sweep's folder.

    Raises:
        UserError: with the reason.
    """
    if resolved(folder) == Path.cwd():
        raise UserError("hydra.sweep.dir: expected a folder of the sweep's own, got the current one.")
    if (folder / "manifest.json").exists():
        raise UserError(f"hydra.sweep.dir: {folder} is the folder of a run; give another folder.")


def source_of(
    base: Any, overrides: Sequence[str], folder: Path, compose: Compose, launcher: Launcher
) -> tuple[Source, int, int, list[Job]]:
    """Build the source that ``hydra.sweeper`` describes.

    Returns:
        the source; ``max_retries``; how many jobs the first submission has; jobs that stand for all.
    """
    values = plain(base.hydra.sweeper)
    kind = values.pop("kind", values.pop("_target_", "nothing"))
    if kind == "grid":
        sweeper, all_jobs = grid_planned(values, overrides, folder, compose, group_folders(base))
        jobs = assign_folders(folder, all_jobs)
        for job in jobs:
            check(job, here=True)
            check_resume(job)
        check_disk(folder, [job for job in jobs if not job_state(job.folder).done], print)
        return Grid(jobs), sweeper.max_retries, len(jobs), jobs
    if kind == "race":
        return race_of(base, values, overrides, folder, compose, launcher)
    if kind == "optuna":
        from rlrt.sweep.confirm import Confirmed
        from rlrt.sweep.rehearsal import rehearse, slow_sampler
        from rlrt.sweep.search import Search
        from rlrt.sweep.space import overrides_of

        def make_job(typed: Sequence[str]) -> Job:
            return checked(folder, typed, compose, here=True)

        folders = group_folders(base)
        plan, fixed, retries = search_of(values, job_overrides(overrides), make_job, launcher, folders)
        proposed = rehearse(plan)
        if missing := slow_sampler(plan.sampler):
            print(missing)
        typical = make_job(fixed)
        refuse_unknown_key(plan.space, lambda: make_job([*fixed, *overrides_of(proposed)]))
        check_disk(folder, still_to_write(folder, typical, plan.jobs), print)
        known = folders_by_identity(folder)

        def make(more: Sequence[str]) -> Job:
            return with_folder(folder, make_job([*fixed, *more]), more, known)

        search = Search(folder, plan, make)
        source = Confirmed(search, folder, plan.objectives[0], plan.fresh_seeds, make) if plan.fresh_seeds else search
        return source, retries, max(1, len(plan.seeds)), [typical]
    raise UserError(f"hydra/sweeper: expected grid, optuna or race, got {kind}; other sweepers cannot be used here.")


def race_of(
    base: Any, values: dict[str, Any], overrides: Sequence[str], folder: Path, compose: Compose, launcher: Launcher
) -> tuple[Source, int, int, list[Job]]:
    """Build the race that ``hydra.sweeper`` describes; returns as ``source_of``."""
    from rlrt.sweep.race import Race, arms_of

    keys, jobs = race_planned(values, overrides, folder, compose, group_folders(base))
    for job in jobs:
        check(job, here=True)
    settings = load(jobs[0].plain)
    refuse_leaving(settings, launcher, "a race starts the next seed where no verdict is known", "goes on with its runs")
    metric = metric_of(keys.metric, settings, "hydra.sweeper.metric")
    arms = arms_of(jobs)
    common, known = set.intersection(*(set(arm.overrides) for arm in arms)), folders_by_identity(folder)

    def make(typed: Sequence[str], seed: int) -> Job:
        own = [*(o for o in typed if o not in common), f"seed={seed}"]
        return with_folder(folder, checked(folder, [*typed, f"seed={seed}"], compose, here=True), own, known)

    race = Race(folder, keys, metric, arms, make)
    race.refuse_another()
    check_disk(folder, still_to_write(folder, jobs[0], len(jobs) * keys.max_seeds), print)
    return race, keys.max_retries, min(keys.n_jobs, len(jobs)), jobs


def refuse_unknown_key(names: Iterable[str], make: Callable[[], Job]) -> None:
    """Refuse a search over a key that is not there, where the keys that there are depend on no choice of the search.

    Args:
        names: of what the search varies.
        make: makes a trial's job.

    Raises:
        UserError: naming the key.
    """
    if any("." not in name and name not in ("seed", "threads") for name in names):
        return  # method=a,b: a trial may lack what another one has, and fails alone
    try:
        make()
    except UserError as error:
        if "there is no such key" in str(error):
            raise


def still_to_write(sweep: Path, job: Job, total: int) -> list[Job]:
    """Return stand-ins for the jobs of a search that will still save checkpoints: unfinished ones and future ones."""
    folders = job_folders(sweep)
    begun = [dataclasses.replace(job, folder=folder) for folder in folders if not job_state(folder).done]
    return begun + [job] * max(0, total - len(folders))


def check_resume(job: Job) -> None:
    """Under ``resume=must``, refuse a job without a checkpoint to resume from, before any job of the sweep starts.

    Raises:
        UserError: naming the job's folder.
    """
    if job.plain["resume"] != "must" or job_state(job.folder).done:
        return
    from rlrt.records.checkpoints import newest_good

    if newest_good(listed(job.folder / "checkpoints"), print) is None:
        raise UserError(f"resume=must: expected a good checkpoint in {job.folder}, found none; set resume=auto.")


def configs(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return (overrides, config as YAML) of every job of a sweep, for ``--cfg job``; no job is run."""
    with composer(config_dirs) as compose:
        jobs, _ = planned(compose(of_the_whole(overrides)), overrides, Path(), compose)
    return [(" ".join(job.overrides), config_text(redacted(dict(job.plain)))) for job in jobs]
