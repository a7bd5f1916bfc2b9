"""The sections ``hydra.sweeper`` and ``hydra.launcher``: their keys, and checks of their combination."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlrt.config.load import fields_of, load, refuse_unknown, typed
from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.records.identity import identity
from rlrt.statistics import ladder
from rlrt.sweep.launchers import Launcher, LocalLauncher, SlurmLauncher
from rlrt.sweep.plan import Job
from rlrt.sweep.search import Plan
from rlrt.sweep.space import described, space_of

LAUNCHERS: Mapping[str, type[LocalLauncher | SlurmLauncher]] = {"local": LocalLauncher, "slurm": SlurmLauncher}
FINAL = ("eval/", "reward/", "policy/entropy")
"""A run's summary holds the metrics with these prefixes (``rlrt.execution.execute.finish``)."""


@dataclass
class GridKeys:
    """``hydra.sweeper.*`` of ``hydra/sweeper=grid``."""

    params: dict[str, Any] | None = key("axes: key to its values, as a list or as on the command line")
    grids: list[Any] | None = key("a list of sections like params; the union of their grids is run")
    max_retries: int = key("times that a failed or lost job is started again", least=0)


@dataclass
class SearchKeys:
    """``hydra.sweeper.*`` of ``hydra/sweeper=optuna``."""

    params: dict[str, Any] | None = key("key to a space: {type: float|int|choice, ...}, or Hydra's grammar")
    objective: Any = key("metric of the final evaluation, or a list of them; null: eval/avg_at_K")
    direction: Any = key("maximize or minimize, or one for each objective")
    n_trials: int = key("trials of the study, over all its interruptions", least=1)
    n_jobs: int = key("trials that run at a time", least=1)
    seed: int = key("seed of the sampler", least=0)
    sampler: dict[str, Any] = key("Optuna's sampler, which proposes trials; set by hydra/sweeper/sampler")
    pruner: dict[str, Any] = key("Optuna's pruner, which ends hopeless trials early; set by hydra/sweeper/pruner")
    max_retries: int = key("times that a failed or lost job is started again", least=0)


def grid_of(values: Mapping[str, Any]) -> GridKeys:
    """Return the grid that ``hydra.sweeper`` describes; ``params`` and ``grids`` are never null.

    Raises:
        UserError: for an unknown key or a wrong shape.
    """
    where = "hydra.sweeper"
    refuse_unknown(values, fields_of(GridKeys), where)
    params, grids = values.get("params") or {}, values.get("grids") or []
    if not isinstance(params, dict):
        raise UserError(f"{where}.params: expected keys with their values, got {params!r}.")
    if not isinstance(grids, list) or not all(isinstance(g, dict) for g in grids):
        raise UserError(f"{where}.grids: expected a list of sections like params, got {grids!r}.")
    keys: GridKeys = typed(GridKeys, {**values, "params": params, "grids": grids}, where)
    return keys


def search_of(
    values: Mapping[str, Any],
    arguments: Sequence[str],
    job: Callable[[Sequence[str]], Job],
    launcher: Launcher,
) -> tuple[Plan, list[str], int]:
    """Return the search that ``hydra.sweeper`` describes: (plan, overrides shared by all trials, ``max_retries``).

    Raises:
        UserError: for an unknown key, a wrong shape, or settings that cannot work together.
    """
    where = "hydra.sweeper"
    refuse_unknown(values, fields_of(SearchKeys), where)
    keys: SearchKeys = typed(SearchKeys, values, where)
    fixed, space = space_of(keys.params or {}, [a for a in arguments if not a.startswith("trial.")])
    settings = load(job([*fixed, *[a for a in arguments if a.startswith("trial.")]]).plain)
    objectives, directions = objectives_of(keys, settings)
    refuse_impossible(keys, objectives, settings, launcher)
    seeds = settings.trial.seeds or []
    if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise UserError(f"trial.seeds: expected different whole numbers of at least 0, got {seeds}.")
    same = [identity(settings.plain), described(space), objectives, directions, seeds]
    plan = Plan(
        space=space,
        objectives=objectives,
        directions=directions,
        n_trials=keys.n_trials,
        n_jobs=keys.n_jobs,
        seeds=seeds,
        sampler=keys.sampler,
        pruner=pruner_of(keys.pruner, settings),
        seed=keys.seed,
        identity=hashlib.sha256(json.dumps(same).encode()).hexdigest()[:8],
    )
    return plan, fixed, keys.max_retries


def objectives_of(keys: SearchKeys, settings: Settings) -> tuple[list[str], list[str]]:
    """Return the objectives' metrics and a direction for each.

    Raises:
        UserError: for a metric that the final evaluation does not have, or directions that do not match.
    """
    k = settings.eval.samples_per_prompt
    objective = keys.objective if keys.objective is not None else f"eval/avg_at_{k}"
    objectives = list(objective) if isinstance(objective, list) else [objective]
    counted = [f"eval/avg_at_{k}", *(f"eval/pass_at_{n}" for n in ladder(k))]
    for name in objectives:
        is_final = isinstance(name, str) and name.startswith(FINAL)
        if not is_final or ("_at_" in name and name not in counted):
            raise UserError(
                f"hydra.sweeper.objective: expected metrics of the final evaluation (with eval.samples_per_prompt={k}: "
                f"{', '.join(counted)}, eval/greedy, eval/distinct_correct, reward/mean, ...), got {name!r}."
            )
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
    prunes = not str(keys.pruner.get("_target_", "")).endswith("NopPruner")
    if prunes and len(objectives) > 1:
        raise UserError(
            "hydra/sweeper/pruner: trials with several objectives have no order by which a running one is worse than another, "
            "so they cannot be pruned; set hydra/sweeper/pruner=none."
        )
    if prunes and settings.train.eval_every == 0 and objectives[0].startswith("eval/"):
        raise UserError("train.eval_every: a pruner needs evaluations during training, got 0; set train.eval_every=25.")
    if isinstance(launcher, SlurmLauncher) and not launcher.wait:
        raise UserError(
            "hydra.launcher.wait=false: a search proposes the next trial when one has ended, so its driver must stay; leave "
            "wait out (the same command continues the search of a stopped driver)."
        )
    if settings.resume != "auto":
        raise UserError(
            f"resume={settings.resume}: a search continues its study, so expected auto; for a new study give another "
            "hydra.sweep.dir."
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
    launcher: Launcher = typed(cls, rest, "hydra.launcher")
    return launcher
