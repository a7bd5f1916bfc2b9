"""``python -m rlrt.run -m``: from what was typed to a driven sweep. Hydra composes; the loop is ours.

Hydra's own sweepers and launchers are not used: see docs/architecture.md, "Why no Hydra plugin".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.config.load import fields_of, load, refuse_unknown, typed
from rlrt.errors import UserError
from rlrt.hydra_setup import composer
from rlrt.identity import identity, readable
from rlrt.sweep.driver import Driver
from rlrt.sweep.launchers import LocalLauncher, SlurmLauncher
from rlrt.sweep.plan import Job, grid_jobs, is_axis

LAUNCHERS: Mapping[str, type[LocalLauncher | SlurmLauncher]] = {"local": LocalLauncher, "slurm": SlurmLauncher}


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
        hydra = compose([o for o in overrides if not is_axis(o)]).hydra
        folder = Path(str(hydra.sweep.dir))
        sweeper, launcher = grid_of(plain(hydra.sweeper)), launcher_of(plain(hydra.launcher))
        jobs = grid_jobs(own(overrides), sweeper.params, sweeper.grids, lambda o: job_of(folder, o, compose))
    for job in jobs:
        check(job)
    folder.mkdir(parents=True, exist_ok=True)
    return Driver(folder, jobs, launcher, sweeper.max_retries).run()


@dataclass
class Grid:
    """``hydra.sweeper.*`` of ``hydra/sweeper=grid``."""

    params: dict[str, Any]
    grids: list[dict[str, Any]]
    max_retries: int


def grid_of(values: Mapping[str, Any]) -> Grid:
    """The grid that ``hydra.sweeper`` describes.

    Raises:
        UserError: for an unknown key or a wrong shape.
    """
    refuse_unknown(
        {k: v for k, v in values.items() if k != "_target_"}, ["params", "grids", "max_retries"], "hydra.sweeper"
    )
    params, grids, retries = values.get("params") or {}, values.get("grids") or [], values.get("max_retries")
    if not isinstance(params, dict):
        raise UserError(f"hydra.sweeper.params: expected keys with their values, got {params!r}.")
    if not isinstance(grids, list) or not all(isinstance(g, dict) for g in grids):
        raise UserError(f"hydra.sweeper.grids: expected a list of sections like params, got {grids!r}.")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise UserError(f"hydra.sweeper.max_retries: expected a whole number of at least 0, got {retries!r}.")
    return Grid(params, grids, retries)


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


def configs(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(overrides, config as YAML) of every job of a sweep, for ``--cfg job``; nothing is run."""
    from omegaconf import OmegaConf

    with composer(config_dirs) as compose:
        sweeper = grid_of(plain(compose([o for o in overrides if not is_axis(o)]).hydra.sweeper))
        jobs = grid_jobs(own(overrides), sweeper.params, sweeper.grids, lambda o: job_of(Path(), o, compose))
    return [(" ".join(job.overrides), OmegaConf.to_yaml(dict(job.plain))) for job in jobs]


def job_of(folder: Path, overrides: tuple[str, ...], compose: Callable[[Sequence[str]], Any]) -> Job:
    """The job that overrides compose to; its folder is named after them and its identity."""
    from omegaconf import OmegaConf

    composed = compose(overrides)
    keys = [str(k) for k in composed if k != "hydra"]
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, keys), resolve=True)
    choices = {k: str(v) for k, v in composed.hydra.runtime.choices.items() if "/" not in k and v is not None}
    short = identity(values)
    return Job(folder / f"{readable(overrides, 'default')}-{short}", overrides, values, choices, short)


def plain(value: Any) -> Any:
    """A part of Hydra's section as plain values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True)


def launcher_of(values: Mapping[str, Any]) -> LocalLauncher | SlurmLauncher:
    """The launcher that ``hydra.launcher`` describes, its keys checked.

    Raises:
        UserError: for an unknown key, a wrong type or a launcher that is not rlrt's.
    """
    rest = dict(values)
    name = str(rest.pop("kind", rest.pop("_target_", "nothing")))
    if name not in LAUNCHERS:
        raise UserError(f"hydra/launcher: expected local or slurm, got {name}; other launchers cannot be used here.")
    cls = LAUNCHERS[name]
    refuse_unknown(rest, fields_of(cls), "hydra.launcher")
    launcher: LocalLauncher | SlurmLauncher = typed(cls, rest, "hydra.launcher")
    return launcher
