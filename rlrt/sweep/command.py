"""``python -m rlrt.run -m``: from what was typed to a driven sweep. Hydra composes; the loop is ours.

Hydra's own sweepers and launchers are not used: see docs/architecture.md, "Plugins of others".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlrt.config.compose import composer
from rlrt.errors import UserError
from rlrt.paths import SWEEPS
from rlrt.records.secrets import redacted
from rlrt.records.stored_config import config_text
from rlrt.sweep.disk import check_disk
from rlrt.sweep.driver import Driver, dry_run
from rlrt.sweep.jobs import Compose, check, checked, folders_by_identity, job_of, named, own, placed, plain, planned
from rlrt.sweep.launchers import Launcher, SlurmLauncher
from rlrt.sweep.parent import note_question
from rlrt.sweep.plan import Job, grid_jobs, is_axis
from rlrt.sweep.settings import grid_of, launcher_of, search_of
from rlrt.sweep.source import Grid, Source
from rlrt.sweep.state import job_folders, job_state


def sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> int:
    """Plan the jobs and drive them.

    Args:
        overrides: what was typed, in Hydra's grammar.
        config_dirs: more folders to look for config groups in (Hydra's ``--config-dir``).

    Returns:
        the exit code: 0 where every job finished.

    Raises:
        UserError: for what the user can mend; nothing has been started then.
    """
    with composer(config_dirs) as compose:
        base = compose([o for o in overrides if not is_axis(o)])
        folder = Path(str(base.hydra.sweep.dir))
        refuse_no_sweeps_folder(folder)
        launcher = launcher_of(plain(base.hydra.launcher))
        source, retries, first = source_of(base, overrides, folder, compose, launcher)
        if isinstance(launcher, SlurmLauncher):
            launcher.check()
            if launcher.dry_run:
                return dry_run(launcher, first, folder)
        folder.mkdir(parents=True, exist_ok=True)
        study = next((o.split("=", 1)[1] for o in overrides if o.startswith("+sweep=")), None)
        words = [*(word for place in config_dirs for word in ("--config-dir", place)), *overrides]
        note_question(folder, words, SWEEPS / "sweep" / f"{study}.yaml" if study else None)
        return Driver(folder, source, launcher, retries, plain(base.tracking)).run()


def refuse_no_sweeps_folder(folder: Path) -> None:
    """Refuse to sweep in the current folder, and in the folder of a run.

    Raises:
        UserError: saying what is there.
    """
    if folder.resolve() == Path.cwd():
        raise UserError("hydra.sweep.dir: expected a folder of the sweep's own, got the current one.")
    if (folder / "manifest.json").exists():
        raise UserError(f"hydra.sweep.dir: {folder} is the folder of a run; give another folder.")


def source_of(
    base: Any, overrides: Sequence[str], folder: Path, compose: Compose, launcher: Launcher
) -> tuple[Source, int, int]:
    """(where the jobs come from, ``max_retries``, jobs of the first submission) by ``hydra.sweeper``."""
    values = plain(base.hydra.sweeper)
    kind = values.pop("kind", values.pop("_target_", "nothing"))
    if kind == "grid":
        sweeper = grid_of(values)
        axes = (own(overrides), sweeper.params or {}, sweeper.grids or [])
        jobs = named(folder, grid_jobs(*axes, lambda o: job_of(folder, o, compose)))
        for job in jobs:
            check(job)
            check_resume(job)
        check_disk(folder, [job for job in jobs if not job_state(job.folder).done], print)
        return Grid(jobs), sweeper.max_retries, len(jobs)
    if kind == "optuna":
        from rlrt.sweep.search import Search

        def made(typed: Sequence[str]) -> Job:
            return checked(folder, typed, compose)

        plan, fixed, retries = search_of(values, own(overrides), made, launcher)
        check_disk(folder, still_to_write(folder, made(fixed), plan.n_trials * max(1, len(plan.seeds))), print)
        known = folders_by_identity(folder)
        search = Search(folder, plan, lambda more: placed(folder, made([*fixed, *more]), more, known))
        return search, retries, max(1, len(plan.seeds))
    raise UserError(f"hydra/sweeper: expected grid or optuna, got {kind}; other sweepers cannot be used here.")


def still_to_write(sweep: Path, job: Job, total: int) -> list[Job]:
    """Stand-ins for the jobs of a search that will still save something: those begun and not done, and those to come."""
    there = job_folders(sweep)
    begun = [dataclasses.replace(job, folder=folder) for folder in there if not job_state(folder).done]
    return begun + [job] * max(0, total - len(there))


def check_resume(job: Job) -> None:
    """Under ``resume=must`` refuse a job that has nothing to go on from, before anything of the sweep starts.

    Raises:
        UserError: naming the job's folder.
    """
    if job.plain["resume"] != "must" or job_state(job.folder).done:
        return
    from rlrt.records.checkpoints import newest_good

    if newest_good(job.folder / "checkpoints", print) is None:
        raise UserError(f"resume=must: expected a good checkpoint in {job.folder}, found none; set resume=auto.")


def configs(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(overrides, config as YAML) of every job of a sweep, for ``--cfg job``; nothing is run."""

    with composer(config_dirs) as compose:
        jobs, _ = planned(compose([o for o in overrides if not is_axis(o)]), overrides, Path(), compose)
    return [(" ".join(job.overrides), config_text(redacted(dict(job.plain)))) for job in jobs]
