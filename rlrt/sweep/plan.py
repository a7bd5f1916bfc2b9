"""The jobs of a sweep: combinations of overrides, each with its resolved config, identity and folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records.files import read_json, write_json

SPEC = "job.json"


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        folder: folder in which it runs and that holds its state.
        overrides: its overrides, as on the command line.
        plain: its resolved config as nested plain values.
        choices: the selected option of every config group.
        identity: identity of the run.
        tags: further tags for MLflow.
    """

    folder: Path
    overrides: tuple[str, ...]
    plain: Mapping[str, Any]
    choices: Mapping[str, str]
    identity: str
    tags: Mapping[str, str] = field(default_factory=dict)

    def write(self, **more: Any) -> None:
        """Store what a worker needs to run this job (``job.json``)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        spec = {
            "overrides": list(self.overrides),
            "plain": {**self.plain, "resume": "auto"},  # a job that is started again must resume
            "choices": self.choices,
            "identity": self.identity,
        }
        # private, since the config is not masked and a tracking URI may contain a password
        write_json(self.folder / SPEC, read_json(self.folder / SPEC) | spec | more, private=True)


def refuse_anothers(job: Job) -> None:
    """Refuse a job whose folder holds a run with another identity: that run's results would be taken for this job's.

    Raises:
        UserError: naming both identities.
    """
    stored = read_json(job.folder / "manifest.json").get("identity", job.identity)
    if stored != job.identity:
        raise UserError(
            f"hydra.sweep.dir: {job.folder} holds another run (identity {stored}, the job's is {job.identity}); move that "
            "folder away, or give another hydra.sweep.dir."
        )


def combinations(axes: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Return every combination of the axes' values as overrides; the last axis varies fastest."""
    names = list(axes)
    return [
        tuple(f"{name}={value}" for name, value in zip(names, values, strict=True))
        for values in itertools.product(*(axes[name] for name in names))
    ]


def is_axis(argument: str) -> bool:
    """True if an override has several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return bool(OverridesParser.create().parse_override(argument).is_sweep_override())


def parse_axes(arguments: Sequence[str], params: Mapping[str, Any]) -> dict[str, list[str]]:
    """Parse the axes in ``hydra.sweeper.params`` (or one of its ``grids``) and on the command line, which takes precedence.

    Args:
        arguments: the command line's overrides; in ``a=1,2`` and ``a=range(3)`` the axis has several values.
        params: key to values in the same grammar, or to a list of values.

    Raises:
        UserError: for an axis without values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    typed = {a.split("=", 1)[0].lstrip("+~"): a for a in arguments}
    declared = []
    for name, value in params.items():
        if str(name).lstrip("+~") not in typed:
            if value in ([], None, ""):
                raise UserError(f"hydra.sweeper: the axis {name} has no values.")
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            declared.append(f"{name}={text}")
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides([*declared, *arguments]):
        name = override.get_key_element()
        if override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
        elif override.is_sweep_override():
            raise UserError(
                f"{override.input_line}: a range of numbers needs hydra/sweeper=optuna; a grid takes a list."
            )
        else:
            values = [override.get_value_element_as_str()]
        if not values:
            raise UserError(f"{override.input_line}: this axis has no values.")
        axes[name] = values
    return axes


def grid_jobs(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    grids: Sequence[Mapping[str, Any]],
    compose: Callable[[tuple[str, ...]], Job],
) -> list[Job]:
    """Return the jobs of a grid, or of the union of several grids, in order; jobs of equal identity appear once.

    Args:
        arguments: the command line's overrides.
        params: axes shared by all grids.
        grids: further axes of each grid; an empty list means one grid without further axes.
        compose: builds a job from its overrides.
    """
    jobs: dict[str, Job] = {}
    for grid in grids or [{}]:
        for overrides in combinations(parse_axes(arguments, {**params, **grid})):
            job = compose(overrides)
            jobs.setdefault(job.identity, job)
    return list(jobs.values())
