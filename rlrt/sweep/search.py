"""A search: Optuna proposes trials, the sweep's driver runs their jobs, and the jobs' metrics decide which are pruned.

Only the driver writes the study. Jobs write their records as in any sweep, and the driver reads the records while they grow.
So pruning works the same for SLURM jobs, a job does not need Optuna, and a trial can be the mean over several seeds. A trial's
jobs are identified by their folders: a new driver continues the running trials, and a trial that repeats an earlier one gets
the results of the existing jobs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, first_line
from rlrt.records.files import write_json
from rlrt.reporting.confirmed import BEST
from rlrt.sweep.plan import Job
from rlrt.sweep.source import Closing, Ended, number_of, waits_for_a_person
from rlrt.sweep.space import grid_size, grid_values, overrides_of, text_of
from rlrt.sweep.state import Follower

JOURNAL = "study.journal"


@dataclass(frozen=True)
class Plan:
    """``hydra.sweeper.*`` of ``hydra/sweeper=optuna``, checked.

    Attributes:
        space: key to an ``optuna.distributions`` distribution.
        objectives: names of metrics.
        directions: ``maximize`` or ``minimize`` for each.
        n_trials: trials of the study, over all its drivers.
        n_jobs: trials that run at a time.
        seeds: a trial is the mean over runs with these seeds; empty: one run with the config's seed.
        fresh_seeds: those on which the best is confirmed; empty: it is not.
        sampler, pruner: ``_target_`` and arguments.
        seed: seed of the sampler.
        identity: hash of everything that two invocations of one study must share.
    """

    space: Mapping[str, Any]
    objectives: Sequence[str]
    directions: Sequence[str]
    n_trials: int
    n_jobs: int
    seeds: Sequence[int]
    sampler: Mapping[str, Any]
    pruner: Mapping[str, Any]
    seed: int
    identity: str
    fresh_seeds: Sequence[int] = ()

    @property
    def jobs(self) -> int:
        """Runs of all trials, and those that confirm the best beside the default."""
        return self.n_trials * max(1, len(self.seeds)) + 2 * len(self.fresh_seeds)


@dataclass
class Running:
    """A trial whose jobs have not all ended.

    Attributes:
        trial: Optuna's trial.
        jobs: one job for every seed.
        followers: one follower for every job.
        seen: for every job, its objective by step.
        reported: steps whose mean was reported to Optuna.
        prune: True once its jobs were asked to end.
    """

    trial: Any
    jobs: list[Job]
    followers: list[Follower]
    seen: list[dict[int, float]]
    reported: set[int]
    prune: bool = False


class Search:
    """A study as a source of jobs.

    Args:
        sweep: the sweep's folder, which holds the study's journal.
        plan: the checked settings of the search.
        job: builds a job from a trial's overrides; raises UserError if they do not compose.
    """

    def __init__(self, sweep: Path, plan: Plan, job: Callable[[Sequence[str]], Job]) -> None:
        self._sweep, self._plan, self._job = sweep, plan, job
        self._running: dict[int, Running] = {}
        self._study: Any = None
        self.prunes = not str(plan.pruner.get("_target_", "")).endswith("NopPruner")
        self._ended, self._lines, self._halted = 0, list[str](), False
        self._size = grid_size(plan.space) if is_grid(plan) else None

    def begin(self) -> list[Job]:
        """Open the study, and continue the trials that were running under an earlier driver."""
        import optuna

        self._study = open_study(self._sweep, self._plan)
        running = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        jobs: list[Job] = []
        for frozen in running:
            jobs += self._take(optuna.trial.Trial(self._study, frozen._trial_id))
        return jobs

    def more(self, room: int) -> list[Job]:
        """Propose new trials while there is room for another job and another trial; return their jobs."""
        if self._halted:
            return []
        jobs: list[Job] = []
        while len(jobs) < room and len(self._running) < self._plan.n_jobs and self._trial_count() < self._trial_limit():
            jobs += self._take(self._study.ask())
        return jobs

    def _trial_count(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def _trial_limit(self) -> int:
        return self._plan.n_trials if self._size is None else min(self._plan.n_trials, self._size)

    def _take(self, trial: Any) -> list[Job]:
        """Suggest a trial's missing parameters and return its jobs. A killed driver may have set some parameters already.

        ``Study.ask`` makes the same private call of Optuna's.
        """
        params = {name: trial._suggest(name, over) for name, over in self._plan.space.items()}
        seeds = [[f"seed={seed}"] for seed in self._plan.seeds] or [[]]
        try:
            jobs = [self._job([*overrides_of(params), *seed]) for seed in seeds]
        except UserError as error:
            self._lines.append(self._fail(trial, str(error)))
            return []
        jobs = [tagged(job, trial.number) for job in jobs]
        trial.set_user_attr("jobs", [job.folder.name for job in jobs])
        reported = set(self._study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        followers = [Follower(job.folder) for job in jobs]
        self._running[trial.number] = Running(trial, jobs, followers, [{} for _ in jobs], reported)
        return jobs

    def watch(self, ended: Ended) -> tuple[list[Path], list[str]]:
        """Report new values to Optuna, ask it which trials to prune, and tell it how trials ended.

        Only the first trial with a job may prune it, not a later trial that repeats the first.
        """
        prune: list[Path] = []
        lines, self._lines = self._lines, []
        owned: set[Path] = set()
        for number, running in sorted(self._running.items()):
            folders = {job.folder for job in running.jobs}
            owner = owned.isdisjoint(folders)
            owned |= folders
            news = self._report(running) and owner
            states = [ended.get(job.folder) for job in running.jobs]
            if any(state is not None and waits_for_a_person(state) for state in states):
                del self._running[number]  # the study keeps it as running: the same command continues it
                self._halted = True
                lines.append(f"trial {number} and the search are paused until the same command is given again")
                continue
            bad = next((s for s in states if s is not None and s.name in ("failed", "lost")), None)
            running.prune = running.prune or bad is not None or (news and bool(running.trial.should_prune()))
            if running.prune:
                prune += [j.folder for j, s in zip(running.jobs, states, strict=True) if s is None]
            if all(state is not None for state in states):
                del self._running[number]
                lines.append(self._finish(running, ended))
        return prune, lines

    def _report(self, running: Running) -> bool:
        """Report the mean over the seeds at every step that all seeds have reached; return True if a step was new."""
        if len(self._plan.objectives) > 1:
            return False
        (name,) = self._plan.objectives
        for follower, seen in zip(running.followers, running.seen, strict=True):
            seen.update({int(r["step"]): float(r[name]) for r in follower.new() if name in r and r.get("step", 0) > 0})
        new = sorted(set.intersection(*map(set, running.seen)) - running.reported)
        for step in new:
            running.trial.report(math.fsum(seen[step] for seen in running.seen) / len(running.seen), step)
        running.reported |= set(new)
        return bool(new)

    def _finish(self, running: Running, ended: Ended) -> str:
        """End a trial: complete with the mean over its seeds, pruned, or failed; return a line for the user."""
        import optuna

        states = [ended[job.folder] for job in running.jobs]
        number = running.trial.number
        failed = next(((j, s) for j, s in zip(running.jobs, states, strict=True) if not s.done), None)
        if failed is not None:
            job, state = failed
            return self._fail(running.trial, f"{job.folder.name}: {state.error or state.name}")
        if any(state.name == "pruned" for state in states):
            self._ended += 1
            tell_study(self._study, number, optuna.trial.TrialState.PRUNED)
            return f"trial {number}: pruned ({self._params(running.trial)})"
        values = []
        for name in self._plan.objectives:
            numbers = [number_of(state.final.get(name)) for state in states]
            if any(math.isnan(n) for n in numbers):
                missing = f"{name} is not a number at the end" if name in states[0].final else f"there is no {name}"
                return self._fail(running.trial, missing)
            values.append(math.fsum(numbers) / len(numbers))
        self._ended += 1
        tell_study(self._study, number, optuna.trial.TrialState.COMPLETE, values)
        return f"trial {number}: {', '.join(f'{v:.4f}' for v in values)} ({self._params(running.trial)})"

    def _fail(self, trial: Any, why: str) -> str:
        import optuna

        self._ended += 1
        trial.set_user_attr("error", why[:500])
        tell_study(self._study, trial.number, optuna.trial.TrialState.FAIL)
        return f"trial {trial.number}: failed: {why}"

    def _params(self, trial: Any) -> str:
        return " ".join(f"{k}={short(v)}" for k, v in trial.params.items())

    def unfinished(self) -> bool:
        """True if trials are still to be ended or proposed; a trial that only repeats ended jobs has no active job."""
        return bool(self._running) or (not self._halted and self._trial_count() < self._trial_limit())

    @property
    def halted(self) -> bool:
        """True if a job waits for a person, so that the search proposes no more trials."""
        return self._halted

    def best_overrides(self) -> list[str] | None:
        """Return what the best trial adds to the shared overrides; None if no trial is complete."""
        best = self._best()
        return overrides_of(best[0].params) if best else None

    def headline(self) -> str:
        """Return the number of trials so far and the best values."""
        best = self._best()
        values = f", best {', '.join(f'{v:.4f}' for v in best[0].values)}" if best else ""
        return f"trials: {self._trial_count()} of {self._trial_limit()}{values}"

    def _best(self) -> list[Any]:
        """Return the best trial, or the Pareto front of several objectives without repeats; [] if no trial is complete."""
        import optuna

        complete = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not complete:
            return []
        if len(self._plan.objectives) == 1:
            return [self._study.best_trial]
        front = sorted(self._study.best_trials, key=lambda t: t.number, reverse=True)
        return list({tuple(t.user_attrs.get("jobs", [t.number])): t for t in front}.values())[::-1]

    def close(self, ended: Ended) -> Closing:
        """Report counts and best parameters: as lines, in ``best.json``, and as tags of the sweep's parent run in MLflow.

        The exit code is 1 if no trial is complete, or if no job is active and fewer trials ended than were requested.
        """
        trials = self._study.get_trials(deepcopy=False)
        counts = {name: sum(t.state.name == name for t in trials) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")}
        finished = len(trials) - counts["RUNNING"]
        lines = [f"study {self._study.study_name}: " + ", ".join(f"{n} {k.lower()}" for k, n in counts.items() if n)]
        lines += [f"trial {t.number} failed: {t.user_attrs.get('error')}" for t in trials if t.state.name == "FAIL"]
        under_way = any(job.folder not in ended for running in self._running.values() for job in running.jobs)
        short = finished < self._trial_limit() and not under_way
        if short:
            lines.append(
                f"only {finished} of {self._trial_limit()} trials have ended; the same command continues the search"
            )
        best = self._best()
        if not best:
            code = int(self._halted or short or finished >= self._trial_limit())
            return Closing([*lines, "no trial is complete yet"], code, {}, {}, finished)
        descriptions = [self._described(trial) for trial in best]
        write_json(self._sweep / BEST, {"study": self._study.study_name, "best": descriptions})
        for b in descriptions:
            values = ", ".join(f"{name} {value:.4f}" for name, value in b["values"].items())
            lines.append(f"best: trial {b['trial']}: {values}: {' '.join(b['overrides'])}")
        lines.append(f"saved in {self._sweep / 'best.json'}; the study is in {self._sweep / JOURNAL}")
        tags = {f"rlrt.best.{name}": text_of(value) for name, value in best[0].params.items()}
        tags |= {f"rlrt.trials.{name.lower()}": str(n) for name, n in counts.items()}
        best_values = descriptions[0]["values"] if self._ended else {}
        metrics = {f"best/{name.replace('/', '_')}": v for name, v in best_values.items()}
        return Closing(lines, int(self._halted or short), tags, metrics, finished)

    def _described(self, trial: Any) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "values": dict(zip(self._plan.objectives, trial.values, strict=True)),
            "params": trial.params,
            "overrides": overrides_of(trial.params),
            "jobs": trial.user_attrs.get("jobs", []),
        }


def tagged(job: Job, trial: int) -> Job:
    """Return a copy of a job with the number of its trial as a tag."""
    return Job(job.folder, job.overrides, job.plain, job.choices, job.identity, {"rlrt.trial": str(trial)})


def short(value: Any) -> str:
    """Format a parameter with at most 4 significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tell_study(study: Any, number: int, state: Any, values: Sequence[float] | None = None) -> None:
    """Tell Optuna how a trial ended.

    At the last point of the grid Optuna's grid sampler stops the study. Outside ``optimize`` that raises a RuntimeError after
    the trial has been stored.
    """
    try:
        study.tell(number, values, state=state)
    except RuntimeError:
        if not study.get_trials(deepcopy=False)[number].state.is_finished():
            raise


def is_grid(plan: Plan) -> bool:
    """True if the sampler is Optuna's grid sampler."""
    return str(plan.sampler.get("_target_", "")).endswith("GridSampler")


def open_study(sweep: Path, plan: Plan) -> Any:
    """Open the study in the sweep's journal, or create it.

    Raises:
        UserError: for a sampler or pruner that Optuna does not accept.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = sweep / JOURNAL
    mend(journal)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    name = f"{sweep.name}-{plan.identity}"
    trials = {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(storage)}
    grid = {"search_space": grid_values(plan.space)} if is_grid(plan) else {}
    # a resumed study needs another seed, or it would propose the same points again; for a grid the seed is the order
    seed = plan.seed if is_grid(plan) else plan.seed + trials.get(name, 0)
    sampler = built(plan.sampler, "sampler", seed=seed, **grid)
    pruner = built(plan.pruner, "pruner")
    return optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=sampler,
        pruner=pruner,
        directions=[optuna.study.StudyDirection[d.upper()] for d in plan.directions],
        load_if_exists=True,
    )


def built(section: Mapping[str, Any], what: str, **more: Any) -> Any:
    """Build the sampler or pruner that a section describes.

    Raises:
        UserError: with the reason.
    """
    import warnings

    import optuna
    from hydra.utils import instantiate

    base = optuna.samplers.BaseSampler if what == "sampler" else optuna.pruners.BasePruner
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            instance = instantiate(dict(section), **more, _convert_="all")
    except Exception as error:  # Hydra wraps failed imports, unknown arguments and values out of range in one type
        reason = first_line(error.__cause__ or error)
        raise UserError(f"hydra.sweeper.{what}: {section.get('_target_')} cannot be created: {reason}") from None
    if not isinstance(instance, base):
        raise UserError(
            f"hydra.sweeper.{what}: expected a subclass of optuna's {base.__name__}, got {section.get('_target_')}."
        )
    return instance


def mend(journal: Path) -> None:
    """Remove a partial last line and Optuna's lock, which a killed driver may have left in the journal.

    The caller holds the sweep's lease, so no other process is writing.
    """
    lock = Path(f"{journal}.lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
    if journal.exists():
        size, text = journal.stat().st_size, journal.read_bytes()
        end = text.rfind(b"\n") + 1
        if end < size:
            os.truncate(journal, end)
