"""A search: Optuna proposes, the sweep's driver runs, and what the jobs report decides what is pruned.

Only the driver writes the study. Jobs write their records as always, and the driver reads them while they grow: so pruning
works the same from SLURM jobs, a job needs no Optuna, and a trial can be the mean over several seeds. A trial's jobs are found
again by their folders, so a driver that takes over goes on with the trials that it finds running, and a trial that repeats an
earlier one is told what became of the jobs that are there.
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
from rlrt.sweep.plan import Job
from rlrt.sweep.source import Closing, Ended
from rlrt.sweep.space import grid_size, grid_values, overrides_of, text_of
from rlrt.sweep.state import LATER, Follower, JobState

JOURNAL = "study.journal"


@dataclass(frozen=True)
class Plan:
    """``hydra.sweeper.*`` of ``hydra/sweeper=optuna``, checked.

    Attributes:
        space: key to an ``optuna.distributions`` distribution.
        objectives: names of metrics.
        directions: ``maximize`` or ``minimize`` for each.
        n_trials: of the study, over all its drivers.
        n_jobs: trials that run at a time.
        seeds: a trial is the mean over runs with these; empty for one run with the config's own seed.
        sampler, pruner: ``_target_`` and arguments.
        seed: of the sampler.
        identity: what must be equal for two invocations to belong to one study.
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


@dataclass
class Running:
    """A trial whose jobs have not all ended.

    Attributes:
        trial: Optuna's.
        jobs: one for every seed.
        followers: one for every job.
        seen: for every job, its objective by step.
        reported: steps whose mean Optuna has.
        prune: whether its jobs were asked to end.
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
        sweep: the sweep's folder, where the study's journal lies.
        plan: what to search.
        job: makes a job from a trial's overrides; raises UserError where they do not compose.
    """

    def __init__(self, sweep: Path, plan: Plan, job: Callable[[Sequence[str]], Job]) -> None:
        self._sweep, self._plan, self._job = sweep, plan, job
        self._running: dict[int, Running] = {}
        self._study: Any = None
        self.prunes = not str(plan.pruner.get("_target_", "")).endswith("NopPruner")
        self._told, self._lines, self._halted = 0, list[str](), False
        self._size = grid_size(plan.space) if is_grid(plan) else None

    def begin(self) -> list[Job]:
        """Open the study, and go on with the trials that an earlier driver left running."""
        import optuna

        self._study = open_study(self._sweep, self._plan)
        left = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        jobs: list[Job] = []
        for frozen in left:
            jobs += self._take(optuna.trial.Trial(self._study, frozen._trial_id))
        return jobs

    def more(self, room: int) -> list[Job]:
        """New trials while there is room for one more job and for one more trial."""
        if self._halted:
            return []
        jobs: list[Job] = []
        while len(jobs) < room and len(self._running) < self._plan.n_jobs and self._asked() < self._most():
            jobs += self._take(self._study.ask())
        return jobs

    def _asked(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def _most(self) -> int:
        return self._plan.n_trials if self._size is None else min(self._plan.n_trials, self._size)

    def _take(self, trial: Any) -> list[Job]:
        """The jobs of a trial. Its parameters are suggested here: all of a new one's, what is lacking of one that a killed
        driver left (``Study.ask`` takes the same call of Optuna's)."""
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
        """Report what is new, ask what to prune, and tell Optuna how trials ended.

        A running trial's jobs are its own: a later trial that repeats it has no say in whether they are pruned.
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
                del self._running[number]  # still running in the study: the same command goes on with it
                self._halted = True
                lines.append(f"trial {number} waits for the same command, and no new one is proposed until then")
                continue
            bad = next((s for s in states if s is not None and s.name in ("failed", "lost")), None)
            running.prune = running.prune or bad is not None or (news and bool(running.trial.should_prune()))
            if running.prune:
                prune += [j.folder for j, s in zip(running.jobs, states, strict=True) if s is None]
            if all(state is not None for state in states):
                del self._running[number]
                lines.append(self._tell(running, ended))
        return prune, lines

    def _report(self, running: Running) -> bool:
        """Give Optuna the mean over the seeds at every step that all of them have reached; returns whether one was new."""
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

    def _tell(self, running: Running, ended: Ended) -> str:
        """A trial's end: complete with the mean over its seeds, pruned, or failed."""
        import optuna

        states = [ended[job.folder] for job in running.jobs]
        number = running.trial.number
        failed = next(((j, s) for j, s in zip(running.jobs, states, strict=True) if not s.done), None)
        if failed is not None:
            job, state = failed
            return self._fail(running.trial, f"{job.folder.name}: {state.error or state.name}")
        if any(state.name == "pruned" for state in states):
            self._told += 1
            told(self._study, number, optuna.trial.TrialState.PRUNED)
            return f"trial {number}: pruned ({self._params(running.trial)})"
        values = []
        for name in self._plan.objectives:
            numbers = [number_of(state.final.get(name)) for state in states]
            if any(math.isnan(n) for n in numbers):
                missing = f"{name} is not a number at the end" if name in states[0].final else f"there is no {name}"
                return self._fail(running.trial, missing)
            values.append(math.fsum(numbers) / len(numbers))
        self._told += 1
        told(self._study, number, optuna.trial.TrialState.COMPLETE, values)
        return f"trial {number}: {', '.join(f'{v:.4f}' for v in values)} ({self._params(running.trial)})"

    def _fail(self, trial: Any, why: str) -> str:
        import optuna

        self._told += 1
        trial.set_user_attr("error", why[:500])
        told(self._study, trial.number, optuna.trial.TrialState.FAIL)
        return f"trial {trial.number}: failed: {why}"

    def _params(self, trial: Any) -> str:
        return " ".join(f"{k}={short(v)}" for k, v in trial.params.items())

    def unfinished(self) -> bool:
        """Whether trials are still to be told, or to be proposed: one that only repeats ended jobs keeps no job alive."""
        return bool(self._running) or (not self._halted and self._asked() < self._most())

    def headline(self) -> str:
        """Trials so far, and the best of them."""
        best = self._best()
        found = f", best {', '.join(f'{v:.4f}' for v in best[0].values)}" if best else ""
        return f"trials: {self._asked()} of {self._most()}{found}"

    def _best(self) -> list[Any]:
        """The best trial, or the Pareto front of several objectives, its repeats once; empty before one is complete."""
        import optuna

        complete = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if not complete:
            return []
        if len(self._plan.objectives) == 1:
            return [self._study.best_trial]
        front = sorted(self._study.best_trials, key=lambda t: t.number, reverse=True)
        return list({tuple(t.user_attrs.get("jobs", [t.number])): t for t in front}.values())[::-1]

    def close(self, ended: Ended) -> Closing:
        """Counts and best parameters: printed, in ``best.json``, and as tags of the sweep's run in MLflow.

        The code is 1 where no trial is complete, or where nothing is under way and fewer trials were told than asked for.
        """
        trials = self._study.get_trials(deepcopy=False)
        counts = {name: sum(t.state.name == name for t in trials) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")}
        finished = len(trials) - counts["RUNNING"]
        lines = [f"study {self._study.study_name}: " + ", ".join(f"{n} {k.lower()}" for k, n in counts.items() if n)]
        lines += [f"trial {t.number} failed: {t.user_attrs.get('error')}" for t in trials if t.state.name == "FAIL"]
        under_way = any(job.folder not in ended for running in self._running.values() for job in running.jobs)
        short = finished < self._most() and not under_way
        if short:
            lines.append(
                f"only {finished} of {self._most()} trials have ended; the same command goes on with the search"
            )
        best = self._best()
        if not best:
            code = int(self._halted or short or finished >= self._most())
            return Closing([*lines, "no trial is complete yet"], code, {}, {}, finished)
        found = [self._described(trial) for trial in best]
        write_json(self._sweep / "best.json", {"study": self._study.study_name, "best": found})
        for b in found:
            values = ", ".join(f"{name} {value:.4f}" for name, value in b["values"].items())
            lines.append(f"best: trial {b['trial']}: {values}: {' '.join(b['overrides'])}")
        lines.append(f"saved in {self._sweep / 'best.json'}; the study is in {self._sweep / JOURNAL}")
        tags = {f"rlrt.best.{name}": text_of(value) for name, value in best[0].params.items()}
        tags |= {f"rlrt.trials.{name.lower()}": str(n) for name, n in counts.items()}
        metrics = {f"best/{name.replace('/', '_')}": v for name, v in found[0]["values"].items()} if self._told else {}
        return Closing(lines, int(self._halted or short), tags, metrics, finished)

    def _described(self, trial: Any) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "values": dict(zip(self._plan.objectives, trial.values, strict=True)),
            "params": trial.params,
            "overrides": overrides_of(trial.params),
            "jobs": trial.user_attrs.get("jobs", []),
        }


def waits_for_a_person(state: JobState) -> bool:
    """Whether what ended a job is not its trial's fault: it was cancelled, the disk is full, a model is missing."""
    return state.name == "interrupted" or state.failure in LATER


def tagged(job: Job, trial: int) -> Job:
    """A job with the number of its trial as a tag."""
    return Job(job.folder, job.overrides, job.plain, job.choices, job.identity, {"rlrt.trial": str(trial)})


def short(value: Any) -> str:
    """A parameter for a person's eye."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def number_of(value: Any) -> float:
    """A final metric as a number; NaN where it is none (records hold NaN as text)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def told(study: Any, number: int, state: Any, values: Sequence[float] | None = None) -> None:
    """Tell Optuna how a trial ended.

    Its grid sampler then stops the study at the last point of the grid, which outside ``optimize`` raises after the trial
    has been told.
    """
    try:
        study.tell(number, values, state=state)
    except RuntimeError:
        if not study.get_trials(deepcopy=False)[number].state.is_finished():
            raise


def is_grid(plan: Plan) -> bool:
    """Whether the sampler takes every combination once."""
    return str(plan.sampler.get("_target_", "")).endswith("GridSampler")


def open_study(sweep: Path, plan: Plan) -> Any:
    """The study in the sweep's journal, made where there is none.

    Raises:
        UserError: for a sampler or pruner that Optuna does not take.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = sweep / JOURNAL
    mend(journal)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    name = f"{sweep.name}-{plan.identity}"
    known = {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(storage)}
    more = {"search_space": grid_values(plan.space)} if is_grid(plan) else {}
    # the same seed would propose the same points again when a study goes on, except to a grid, whose order it is
    seed = plan.seed if is_grid(plan) else plan.seed + known.get(name, 0)
    sampler = built(plan.sampler, "sampler", seed=seed, **more)
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
    """Optuna's object of a section.

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
            made = instantiate(dict(section), **more, _convert_="all")
    except Exception as error:  # an import, an unknown argument, a value out of range: Hydra wraps them all alike
        reason = first_line(error.__cause__ or error)
        raise UserError(f"hydra.sweeper.{what}: {section.get('_target_')} cannot be made: {reason}") from None
    if not isinstance(made, base):
        raise UserError(
            f"hydra.sweeper.{what}: expected a kind of optuna's {base.__name__}, got {section.get('_target_')}."
        )
    return made


def mend(journal: Path) -> None:
    """Undo what a killed driver may have left: half a line at the journal's end, and Optuna's lock on it.

    The caller holds the sweep's own lock, so nobody else is writing.
    """
    lock = Path(f"{journal}.lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
    if journal.exists():
        size, text = journal.stat().st_size, journal.read_bytes()
        end = text.rfind(b"\n") + 1
        if end < size:
            os.truncate(journal, end)
