"""A search's sampler and pruner tried on a study in memory, so that what they cannot do is refused before a job starts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from rlrt.errors import UserError, first_line
from rlrt.sweep.search import Plan, built, is_grid
from rlrt.sweep.space import grid_values


def rehearse(plan: Plan) -> dict[str, Any]:
    """Let the sampler propose one trial of the space, and the pruner judge one report of it; return its parameters.

    Raises:
        UserError: naming the section, with what Optuna said.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    grid = {"search_space": grid_values(plan.space)} if is_grid(plan) else {}
    sampler, pruner = built(plan.sampler, "sampler", seed=plan.seed, **grid), built(plan.pruner, "pruner")
    directions = [optuna.study.StudyDirection[d.upper()] for d in plan.directions]
    what = "sampler"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(sampler=sampler, pruner=pruner, directions=directions)
            trial = study.ask(dict(plan.space))
            if len(directions) == 1:
                what = "pruner"
                trial.report(0.0, 1)
                trial.should_prune()
    except Exception as error:  # a sampler or pruner may be anybody's, and raise anything
        section = plan.sampler if what == "sampler" else plan.pruner
        does = "propose a trial of this space" if what == "sampler" else "judge a trial"
        raise UserError(
            f"hydra.sweeper.{what}: {section.get('_target_')} cannot {does} ({first_line(error)}); check its keys."
        ) from None
    return dict(trial.params)


def slow_sampler(section: Mapping[str, Any]) -> str:
    """Say what to install where Optuna's Gaussian process runs without it; "" for another sampler, or where it is there."""
    if not str(section.get("_target_", "")).endswith("GPSampler") or find_spec("greenlet") is not None:
        return ""
    return "hydra/sweeper/sampler=gp: its proposals take about twice as long without greenlet; pip install greenlet."
