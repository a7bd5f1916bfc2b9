"""Which jobs a sweep has: combinations of overrides, each with its resolved config, its identity and its folder."""

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
        folder: where it runs and what holds its state.
        overrides: what was typed for it.
        plain: its resolved config as nested plain values.
        choices: the option chosen in every config group.
        identity: of the run.
        tags: more tags for MLflow.
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
            "plain": {**self.plain, "resume": "auto"},  # whatever was asked of the sweep: a job started again goes on
            "choices": self.choices,
            "identity": self.identity,
        }
        # the config as it is: a tracking URI may hold a password
        write_json(self.folder / SPEC, read_json(self.folder / SPEC) | spec | more, private=True)


def refuse_anothers(job: Job) -> None:
    """Refuse a job whose folder holds another run than the job's: its numbers would stand under this one's name.

    Raises:
        UserError: naming both identities.
    """
    there = read_json(job.folder / "manifest.json").get("identity", job.identity)
    if there != job.identity:
        raise UserError(
            f"hydra.sweep.dir: {job.folder} holds another run (identity {there}, the job's is {job.identity}); move that "
            "folder away, or give another hydra.sweep.dir."
        )


def combinations(axes: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Every combination of the axes' values as overrides, the last axis fastest."""
    names = list(axes)
    return [
        tuple(f"{name}={value}" for name, value in zip(names, values, strict=True))
        for values in itertools.product(*(axes[name] for name in names))
    ]


def is_axis(argument: str) -> bool:
    """Whether an override has several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return bool(OverridesParser.create().parse_override(argument).is_sweep_override())


def parse_axes(arguments: Sequence[str], params: Mapping[str, Any]) -> dict[str, list[str]]:
    """Axes from ``hydra.sweeper.params`` (or one of its ``grids``) and the command line, which wins.

    Args:
        arguments: what was typed, in Hydra's override grammar; ``a=1,2`` and ``a=range(3)`` are axes of several values.
        params: key to such a text (or to a list of values).

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
    """The jobs of a grid, or of the union of several; equal identities once, in the order they first appear.

    Args:
        arguments: the command line's overrides.
        params: axes shared by all grids.
        grids: axes of each grid; an empty list is one grid without axes of its own.
        compose: a job from its overrides.
    """
    jobs: dict[str, Job] = {}
    for grid in grids or [{}]:
        for overrides in combinations(parse_axes(arguments, {**params, **grid})):
            job = compose(overrides)
            jobs.setdefault(job.identity, job)
    return list(jobs.values())
