"""The sections ``hydra.sweeper`` and ``hydra.launcher``: their keys, and checks of their combination."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlrt.config.load import fields_of, load, refuse_unknown, typed
from rlrt.config.options import content
from rlrt.config.schema import Settings
from rlrt.errors import UserError, shown
from rlrt.keys import LARGEST, key
from rlrt.paths import CONFIG
from rlrt.records.identity import identity
from rlrt.statistics import ladder
from rlrt.sweep.launchers import Launcher, LocalLauncher, SlurmLauncher
from rlrt.sweep.plan import Job, at_most
from rlrt.sweep.search import Plan
from rlrt.sweep.space import described, grid_size, space_of

LAUNCHERS: Mapping[str, type[LocalLauncher | SlurmLauncher]] = {"local": LocalLauncher, "slurm": SlurmLauncher}
FINAL = ("eval/", "reward/", "policy/entropy")
"""A run's summary holds the metrics with these prefixes (``rlrt.execution.execute.finish``)."""


@dataclass
class GridKeys:
    """``hydra.sweeper.*`` of ``hydra/sweeper=grid``."""

    params: dict[str, Any] | None = key("axes: key to its values, as a list or as on the command line")
    grids: list[Any] | None = key("a list of sections like params; the union of their grids is run")
    zip: list[Any] | None = key("lists of keys whose values go together, first with first; null: every combination")
    max_jobs: int = key("the most jobs of a grid; they are counted before one is planned", least=1)
    max_retries: int = key("times that a failed or lost job is started again", least=0)


@dataclass
class RaceKeys(GridKeys):
    """``hydra.sweeper.*`` of ``hydra/sweeper=race``."""

    baseline: dict[str, Any] | None = key(
        "values of the arm that is the baseline, as {method: grpo}; null: the first arm"
    )
    metric: str | None = key("metric of the final evaluation, larger is better; null: eval/avg_at_K")
    alpha: float = key(
        "probability that any arm's interval misses at any look; each arm gets its equal part", above=0, most=0.5
    )
    margin: float = key("largest difference of the metric that makes no difference in practice", above=0)
    scale: float = key("expected size of a difference, in standard deviations of a pair's difference", above=0)
    first_seed: int = key("seed of the first pair; the others follow", least=0)
    max_seeds: int = key("pairs after which an arm ends as cannot tell", least=1)
    n_jobs: int = key("jobs that run at a time", least=1)


@dataclass
class SearchKeys:
    """``hydra.sweeper.*`` of ``hydra/sweeper=optuna``."""

    params: dict[str, Any] | None = key("key to a space: {type: float|int|choice, ...}, or Hydra's grammar")
    objective: Any = key("metric of the final evaluation, or a list of them; null: eval/avg_at_K")
    direction: Any = key("maximize or minimize, or one for each objective")
    n_trials: int = key("trials of the study, over all its interruptions", least=1)
    confirm: int = key("fresh seeds of the best, and of the default, that run after the last trial; 0: none", least=0)
    n_jobs: int = key("trials that run at a time", least=1)
    max_jobs: int = key("the most jobs of a search: n_trials times trial.seeds, or the points of sampler=grid", least=1)
    seed: int = key("seed of the sampler", least=0)
    sampler: dict[str, Any] = key("Optuna's sampler, which proposes trials; set by hydra/sweeper/sampler")
    pruner: dict[str, Any] = key("Optuna's pruner, which ends hopeless trials early; set by hydra/sweeper/pruner")
    max_retries: int = key("times that a failed or lost job is started again", least=0)


AnyGrid = TypeVar("AnyGrid", bound=GridKeys)


def with_shipped(group: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with the shipped value of every key that it lacks: a file of the user's own may be older than a key."""
    shipped = content(CONFIG / "hydra" / group / f"{name}.yaml")
    return {k: v for k, v in shipped.items() if k not in ("kind", "defaults")} | dict(values)


def grid_of(values: Mapping[str, Any], cls: type[AnyGrid], option: str) -> AnyGrid:
    """Return the grid that ``hydra.sweeper`` describes; ``params``, ``grids`` and ``zip`` are never null, and ``zip`` is a list
    of lists.

    Args:
        values: the section.
        cls: its keys.
        option: the shipped file with a value for each of them.

    Raises:
        UserError: for an unknown key or a wrong shape.
    """
    where = "hydra.sweeper"
    refuse_unknown(values, fields_of(cls), where)
    values = with_shipped("sweeper", option, values)
    params, grids = values.get("params") or {}, values.get("grids") or []
    if not isinstance(params, dict):
        raise UserError(f"{where}.params: expected keys with their values, got {params!r}.")
    if not isinstance(grids, list) or not all(isinstance(g, dict) for g in grids):
        raise UserError(f"{where}.grids: expected a list of sections like params, got {grids!r}.")
    groups = zip_of(values.get("zip") or [])
    keys: AnyGrid = typed(cls, {**values, "params": params, "grids": grids, "zip": groups}, where)
    return keys


def zip_of(value: Any) -> list[list[str]]:
    """Return ``hydra.sweeper.zip`` as a list of lists of keys; a single list of keys is one group.

    Raises:
        UserError: for another shape, or a key that appears twice.
    """
    groups = [value] if isinstance(value, list) and all(isinstance(name, str) for name in value) and value else value
    fits = isinstance(groups, list) and all(
        isinstance(group, list) and len(group) > 1 and all(isinstance(name, str) for name in group) for group in groups
    )
    if not fits:
        raise UserError(
            f"hydra.sweeper.zip: expected lists of two or more keys, such as [[train.lr,train.steps]], got {shown(value)}."
        )
    names = [name.lstrip("+~") for group in groups for name in group]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"hydra.sweeper.zip: {twice} appears twice; a key goes together with one group.")
    return [[name.lstrip("+~") for name in group] for group in groups]


def search_of(
    values: Mapping[str, Any],
    arguments: Sequence[str],
    job: Callable[[Sequence[str]], Job],
    launcher: Launcher,
    folders: Sequence[Path] = (),
) -> tuple[Plan, list[str], int]:
    """Return the search that ``hydra.sweeper`` describes: (plan, overrides shared by all trials, ``max_retries``).

    ``folders`` are further folders with config groups.

    Raises:
        UserError: for an unknown key, a wrong shape, or settings that cannot work together.
    """
    where = "hydra.sweeper"
    refuse_unknown(values, fields_of(SearchKeys), where)
    values = with_shipped("sweeper", "optuna", values)
    keys: SearchKeys = typed(SearchKeys, values, where)
    fixed, space = space_of(keys.params or {}, [a for a in arguments if not a.startswith("trial.")], folders)
    settings = load(job([*fixed, *[a for a in arguments if a.startswith("trial.")]]).plain)
    objectives, directions = objectives_of(keys, settings)
    refuse_impossible(keys, objectives, settings, launcher)
    seeds = seeds_of(settings, space)
    trials = trials_of(keys, space, max(1, len(seeds)))
    fresh = fresh_seeds(keys.confirm, seeds or [settings.seed], space, objectives)
    same = [identity(settings.plain), described(space), objectives, directions, seeds]
    plan = Plan(
        space=space,
        objectives=objectives,
        directions=directions,
        n_trials=trials,
        n_jobs=keys.n_jobs,
        seeds=seeds,
        fresh_seeds=fresh,
        sampler=keys.sampler,
        pruner=pruner_of(keys.pruner, settings),
        seed=keys.seed,
        identity=hashlib.sha256(json.dumps(same).encode()).hexdigest()[:8],
    )
    return plan, fixed, keys.max_retries


def seeds_of(settings: Settings, space: Mapping[str, Any]) -> list[int]:
    """Return ``trial.seeds``; [] for one run with the config's seed.

    Raises:
        UserError: for an empty list, a seed that no run can have, or a search that varies the seed as well.
    """
    seeds = settings.trial.seeds
    if seeds is None:
        return []
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed <= LARGEST for seed in seeds):
        raise UserError(
            f"trial.seeds: expected one or more different whole numbers from 0 to {LARGEST}, got {shown(seeds)}; leave it out "
            "for one run with the config's seed."
        )
    if "seed" in {name.lstrip("+~") for name in space}:
        raise UserError(
            "trial.seeds: they are the seeds of every trial, so seed cannot be searched; leave one of them out."
        )
    return seeds


def fresh_seeds(count: int, used: Sequence[int], space: Mapping[str, Any], objectives: Sequence[str]) -> list[int]:
    """Return the seeds that confirm a search's best: the first ones above those of its trials.

    Raises:
        UserError: for a search over seeds, one of several objectives, or seeds above the largest.
    """
    if not count:
        return []
    where = "hydra.sweeper.confirm"
    if "seed" in {name.lstrip("+~") for name in space}:
        raise UserError(
            f"{where}: the best of a search over seed has no fresh seeds; search something else, or set it to 0."
        )
    if len(objectives) > 1:
        raise UserError(
            f"{where}: expected one objective, whose best can be confirmed, got {len(objectives)}; set {where}=0."
        )
    if max(used) + count > LARGEST:
        raise UserError(f"{where}: expected seeds of at most {LARGEST}, got {count} above {max(used)}.")
    return [max(used) + 1 + i for i in range(count)]


def trials_of(keys: SearchKeys, space: Mapping[str, Any], runs: int) -> int:
    """Return the trials of a search: those of a grid are at most its points; refuse a search without an end.

    Args:
        runs: runs of one trial.

    Raises:
        UserError: with the number of its jobs or grid points.
    """
    is_grid = str(keys.sampler.get("_target_", "")).endswith("GridSampler")
    points = grid_size(space) if is_grid else 0
    if points > keys.max_jobs:
        raise UserError(
            f"hydra.sweeper.max_jobs: this grid has {at_most(points)} points, more than the {keys.max_jobs} that are allowed; "
            "give a key fewer values, or set a larger hydra.sweeper.max_jobs."
        )
    trials = min(keys.n_trials, points or keys.n_trials)
    total = trials * runs + 2 * keys.confirm
    if total > keys.max_jobs:
        raise UserError(
            f"hydra.sweeper.n_trials: this search has {total} jobs, more than the {keys.max_jobs} of hydra.sweeper.max_jobs; "
            f"set fewer trials, or hydra.sweeper.max_jobs={total}."
        )
    return trials


def metric_of(name: Any, settings: Settings, where: str) -> str:
    """Return a metric of the final evaluation; None stands for avg@k.

    Args:
        name: what was typed.
        settings: those of a job.
        where: the key, for the message.

    Raises:
        UserError: for a metric that the final evaluation does not have.
    """
    k = settings.eval.samples_per_prompt
    counted = [f"eval/avg_at_{k}", *(f"eval/pass_at_{n}" for n in ladder(k))]
    if name is None:
        return counted[0]
    if isinstance(name, str) and name.startswith(FINAL) and ("_at_" not in name or name in counted):
        return name
    raise UserError(
        f"{where}: expected metrics of the final evaluation (with eval.samples_per_prompt={k}: {', '.join(counted)}, "
        f"eval/greedy, eval/distinct_correct, reward/mean, ...), got {name!r}."
    )


def objectives_of(keys: SearchKeys, settings: Settings) -> tuple[list[str], list[str]]:
    """Return the objectives' metrics and a direction for each.

    Raises:
        UserError: for a metric that the final evaluation does not have, or directions that do not match.
    """
    objectives = list(keys.objective) if isinstance(keys.objective, list) else [keys.objective]
    objectives = [metric_of(name, settings, "hydra.sweeper.objective") for name in objectives]
    directions = list(keys.direction) if isinstance(keys.direction, list) else [keys.direction] * len(objectives)
    if len(directions) != len(objectives) or any(d not in ("maximize", "minimize") for d in directions):
        raise UserError(
            f"hydra.sweeper.direction: expected maximize or minimize, or one of them for each of the {len(objectives)} "
            f"objectives, got {keys.direction!r}."
        )
    return objectives, directions


def refuse_impossible(keys: SearchKeys, objectives: Sequence[str], settings: Settings, launcher: Launcher) -> None:
    """Refuse settings of a search that cannot work together.

    Raises:
        UserError: with the reason.
    """
    refuse_leaving(settings, launcher, "a search proposes the next trial when one has ended", "continues its study")
    prunes = not str(keys.pruner.get("_target_", "")).endswith("NopPruner")
    if prunes and len(objectives) > 1:
        raise UserError(
            "hydra/sweeper/pruner: trials with several objectives have no order by which a running one is worse than another, "
            "so they cannot be pruned; set hydra/sweeper/pruner=none."
        )
    if prunes and settings.train.eval_every == 0 and objectives[0].startswith("eval/"):
        raise UserError("train.eval_every: a pruner needs evaluations during training, got 0; set train.eval_every=25.")


def refuse_leaving(settings: Settings, launcher: Launcher, why: str, goes_on: str) -> None:
    """Refuse what a sweep that proposes its jobs one by one cannot have: a driver that leaves, and an earlier run put aside.

    Args:
        settings: those of a job.
        launcher: the jobs' launcher.
        why: why the driver must stay.
        goes_on: what the sweep does with what is there.

    Raises:
        UserError: with the reason.
    """
    if isinstance(launcher, SlurmLauncher) and not launcher.wait:
        raise UserError(
            f"hydra.launcher.wait=false: {why}, so its driver must stay; leave wait out (the same command goes on where a "
            "driver was stopped)."
        )
    if settings.resume != "auto":
        raise UserError(
            f"resume={settings.resume}: it {goes_on}, so expected auto; for a new one give another hydra.sweep.dir."
        )


def pruner_of(section: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Fill null resources of a pruner's section, in training steps: ``train.eval_every`` (at least 1) and ``train.steps``."""
    filled = dict(section)
    for name, steps in (("min_resource", max(1, settings.train.eval_every)), ("max_resource", settings.train.steps)):
        if name in filled and filled[name] is None:
            filled[name] = steps
    return filled


def launcher_of(values: Mapping[str, Any]) -> Launcher:
    """Build the launcher that ``hydra.launcher`` describes, and check its keys.

    Raises:
        UserError: for an unknown key, a wrong type or a launcher that is not rlrt's.
    """
    rest = dict(values)
    name = str(rest.pop("kind", rest.pop("_target_", "nothing")))
    if name not in LAUNCHERS:
        raise UserError(f"hydra/launcher: expected local or slurm, got {name}; other launchers cannot be used here.")
    cls = LAUNCHERS[name]
    refuse_unknown(rest, fields_of(cls), "hydra.launcher")
    launcher: Launcher = typed(cls, with_shipped("launcher", name, rest), "hydra.launcher")
    return launcher
