"""The jobs of a sweep: combinations of overrides, each with its resolved config, identity and folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrt.config.compose import GROUPS
from rlrt.config.overrides import parsed, written
from rlrt.errors import UserError, shown
from rlrt.keys import LARGEST, finite
from rlrt.records.files import read_json, write_json

SPEC = "job.json"
SPACES = ("float", "int", "choice")
"""Types of a search's space; a section with such a ``type`` is no value of a grid."""


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
            f"hydra.sweep.dir: {job.folder} holds another run (identity {shown(stored)}, the job's is {job.identity}); move "
            "that folder away, or give another hydra.sweep.dir."
        )


def combinations(axes: Mapping[str, Sequence[str]], zipped: Sequence[Sequence[str]] = ()) -> list[tuple[str, ...]]:
    """Return every combination of the axes' values as overrides; the last axis varies fastest.

    Args:
        axes: values of every axis.
        zipped: groups of axes whose values go together, first with first; a group varies where its first axis stands.
    """
    groups = grouped(list(axes), zipped)
    choices = [list(zip(*(axes[name] for name in group), strict=True)) for group in groups]
    names = [name for group in groups for name in group]
    return [
        tuple(f"{name}={value}" for name, value in zip(names, itertools.chain(*values), strict=True))
        for values in itertools.product(*choices)
    ]


def grouped(names: Sequence[str], zipped: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the names of axes in groups that vary together, each name in one group; without ``+`` names are compared."""
    group_of = {name: number for number, group in enumerate(zipped) for name in group}
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(group_of.get(name.lstrip("+~"), name), []).append(name)
    return list(groups.values())


def is_axis(argument: str) -> bool:
    """True if an override has several values."""
    (override,) = parsed([argument])
    return bool(override.is_sweep_override())


def of_the_whole(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of which the config that a whole sweep shares is composed: those with one value, and of each axis
    over a config group its first option, since other overrides may name keys that only such options have."""
    shared = []
    for argument in overrides:
        (override,) = parsed([argument])
        name = argument.split("=", 1)[0]
        if not override.is_sweep_override():
            shared.append(argument)
        elif override.is_choice_sweep() and name.lstrip("+~") in GROUPS:
            options = [str(option) for option in override.sweep_iterator()]
            shared.append(f"{name}={options[0]}")
    return shared


def axes_of(arguments: Sequence[str], params: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Parse the axes in ``hydra.sweeper.params`` (or one of its ``grids``) and on the command line, which takes precedence.

    Args:
        arguments: the command line's overrides; in ``a=1,2`` and ``a=range(3)`` the axis has several values.
        params: key to values in the same grammar, or to a list of values, which arrive as YAML holds them.
        folders: further folders with config groups.

    Returns:
        Hydra's parsed override of every axis, by its name.

    Raises:
        UserError: for an axis without values, or with values that only a search takes.
    """
    typed = {a.split("=", 1)[0].lstrip("+~") for a in arguments}
    declared = [
        f"{name}={axis_text(name, value)}" for name, value in params.items() if str(name).lstrip("+~") not in typed
    ]
    axes: dict[str, Any] = {}
    for override in parsed([*declared, *arguments], folders):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(
                f"{override.input_line}: a range of numbers needs hydra/sweeper=optuna; a grid takes a list."
            )
        axes[override.get_key_element()] = override
    return axes


def axis_text(name: str, value: Any) -> str:
    """Return the values of an axis that YAML declares, in Hydra's grammar.

    Raises:
        UserError: for no values, for a section that describes a search's space, or for a value that no override can have.
    """
    where = f"hydra.sweeper.params.{name}"
    if value in ([], None, ""):
        raise UserError(
            f"hydra.sweeper: the axis {name} has no values; write null and an empty text as [null] and ['']."
        )
    if isinstance(value, dict) and value.get("type") in SPACES:
        raise UserError(f"{where}: a space ({shown(value)}) needs hydra/sweeper=optuna; a grid takes a list of values.")
    try:
        if isinstance(value, list):
            return ",".join(map(written, value))
        return value if isinstance(value, str) else written(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def count(axis: Any) -> int:
    """Return the number of values of an axis without making them.

    Raises:
        UserError: for a range that never ends, or an axis without values.
    """
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    value = axis._value
    if isinstance(value, RangeSweep):
        number = range_count(str(axis.input_line), value)
    elif isinstance(value, ChoiceSweep):
        number = len(value.list)
    else:
        number = len(values_of(axis))
    if number:
        return number
    if axis.is_choice_sweep():
        group = axis.key_or_group
        raise UserError(f"{axis.input_line}: expected names of options of the config group {group}, found none.")
    raise UserError(f"{axis.input_line}: this axis has no values.")


def range_count(line: str, value: Any) -> int:
    """Return the number of values of ``range(start,stop,step)``.

    Raises:
        UserError: for a range that never ends.
    """
    start, stop, step = value.start, value.stop, value.step
    if not all(map(finite, (start, stop, step))) or step == 0:
        raise UserError(f"{line}: expected a range with finite numbers and a step other than 0.")
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        return max(0, -((start - stop) // step))
    from decimal import Decimal

    number = (Decimal(stop) - Decimal(start)) / Decimal(step)  # FloatRange counts in decimals of the same numbers
    return max(0, math.ceil(number))


def values_of(axis: Any) -> list[str]:
    """Return the values of an axis, in Hydra's grammar."""
    return list(axis.sweep_iterator(quoted)) if axis.is_discrete_sweep() else [axis.get_value_element_as_str()]


def quoted(value: Any) -> str:
    """Return one value of an axis in Hydra's grammar.

    ``choice('{prompt}>','{prompt}:')`` hands its texts over without their quotes, and what Hydra then escapes its own parser
    cannot always read.
    """
    from hydra.core.override_parser.types import Transformer

    return written(value) if type(value) is str and "${" not in value else str(Transformer.str(value))


def parse_axes(
    arguments: Sequence[str], params: Mapping[str, Any], folders: Sequence[Path] = ()
) -> dict[str, list[str]]:
    """Return the values of the axes that ``axes_of`` finds.

    Raises:
        UserError: for an axis without values.
    """
    axes = axes_of(arguments, params, folders)
    return {name: values_of(axis) for name, axis in axes.items() if count(axis)}


def grid_jobs(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    grids: Sequence[Mapping[str, Any]],
    compose: Callable[[tuple[str, ...]], Job],
    zipped: Sequence[Sequence[str]] = (),
    max_jobs: int | None = None,
    folders: Sequence[Path] = (),
) -> list[Job]:
    """Return the jobs of a grid, or of the union of several grids, in order; jobs of equal identity appear once.

    One seed's jobs stand before the next one's: a sweep that is stopped half-way then holds whole comparisons.

    Args:
        arguments: the command line's overrides.
        params: axes shared by all grids.
        grids: further axes of each grid; an empty list means one grid without further axes.
        compose: builds a job from its overrides.
        zipped: groups of axes whose values go together.
        max_jobs: the most combinations of all grids; they are counted before one is made.
        folders: further folders with config groups.

    Raises:
        UserError: for axes that cannot be combined, or too many combinations.
    """
    planned = [axes_of(arguments, {**params, **grid}, folders) for grid in grids or [{}]]
    together = [zips_of(axes, zipped) for axes in planned]
    for group in zipped:
        if not any(list(group) in groups for groups in together):
            raise UserError(
                f"hydra.sweeper.zip: expected keys that are swept, got {', '.join(group)}, which no grid has."
            )
    total = sum(map(size, planned, together))
    if max_jobs is not None and total > max_jobs:
        remedy = f", or set hydra.sweeper.max_jobs={total}" if total <= LARGEST else ""
        raise UserError(
            f"hydra.sweeper.max_jobs: this grid has {at_most(total)} jobs, more than the {max_jobs} that are allowed; give an "
            f"axis fewer values{remedy}."
        )
    jobs: dict[str, Job] = {}
    for axes, groups in zip(planned, together, strict=True):
        for overrides in combinations({name: values_of(axis) for name, axis in axes.items()}, groups):
            job = compose(overrides)
            jobs.setdefault(job.identity, job)
    seeds: dict[str, int] = {}
    for job in jobs.values():
        seeds.setdefault(str(job.plain.get("seed")), len(seeds))
    return sorted(jobs.values(), key=lambda job: seeds[str(job.plain.get("seed"))])


def at_most(number: int) -> str:
    """Return a number as text; of one without end only its magnitude."""
    return str(number) if number < 10**15 else "more than 10^15"


def zips_of(axes: Mapping[str, Any], zipped: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the groups of ``hydra.sweeper.zip`` that one grid has.

    Raises:
        UserError: for a group of which a grid has a part, or whose axes have different numbers of values.
    """
    counts = {name.lstrip("+~"): count(axis) for name, axis in axes.items()}
    found = []
    for group in zipped:
        there = [name for name in group if name in counts]
        if not there:
            continue
        lacking = [name for name in group if name not in counts]
        if lacking:
            raise UserError(f"hydra.sweeper.zip: {lacking[0]} is not swept, but {there[0]} is; give it as many values.")
        if len({counts[name] for name in group}) > 1:
            numbers = ", ".join(f"{name} {counts[name]}" for name in group)
            raise UserError(f"hydra.sweeper.zip: expected axes with equal numbers of values, got {numbers}.")
        found.append(list(group))
    return found


def size(axes: Mapping[str, Any], zipped: Sequence[Sequence[str]]) -> int:
    """Return the number of combinations of axes."""
    return math.prod(count(axes[group[0]]) for group in grouped(list(axes), zipped))
