"""Hours of a job and GPU-hours of a sweep, by rates that were measured or assumed, and which of the two."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlrt.config.schema import Settings
from rlrt.preflight.device import kind_of, processes_of
from rlrt.preflight.finding import Finding
from rlrt.preflight.fit import Group
from rlrt.preflight.forecast.earlier import Earlier, earlier
from rlrt.preflight.forecast.rates import H100, Rates, rates_of
from rlrt.preflight.forecast.step import Step, as_long_as_may_be, checkpoint_bytes, evaluations, forecast, saves
from rlrt.preflight.forecast.work import MEAN, Work
from rlrt.preflight.plan import Planned
from rlrt.reporting.terminal import duration
from rlrt.sweep.disk import one_checkpoint
from rlrt.sweep.launchers import LocalLauncher, SlurmLauncher
from rlrt.sweep.plan import Job

COUNTING = ("train", "eval", "engine", "method", "teacher", "model", "data", "dtype", "distributed", "device")
"""Sections and keys of a config that a forecast reads: jobs that agree in them share one."""


@dataclass(frozen=True)
class Hours:
    """The forecast of one job.

    Attributes:
        steps: number of steps.
        step_s: seconds of a step, without evaluation and checkpoint.
        evaluations, evaluation_s: how many, and seconds of each; None: not known, and not counted.
        probe_s: seconds of asking, once, whether the teacher's context helps; 0: not asked, or not known.
        saves, checkpoint_s: how many checkpoints, and seconds of each.
        cards: GPUs of the job; 0 on a CPU.
        measured: True if the seconds of a step were measured.
        evaluation_measured: True if those of an evaluation were.
        source: where the seconds come from.
    """

    steps: int
    step_s: float
    evaluations: int
    evaluation_s: float | None
    probe_s: float
    saves: int
    checkpoint_s: float
    cards: int
    measured: bool
    evaluation_measured: bool
    source: str

    @property
    def total_s(self) -> float:
        """Return the seconds of the job."""
        once_s = self.evaluations * (self.evaluation_s or 0.0) + self.probe_s
        return self.steps * self.step_s + once_s + self.saves * self.checkpoint_s


class Forecaster:
    """Forecasts of the jobs of one command; jobs that agree in what counts are computed once.

    Args:
        planned: the jobs, with their data as far as it was read.
        groups: the jobs' estimates of memory, which have sizes, lengths and layout.
        memory_gb, step_s, rates: ``--memory-gb``, ``--step-seconds`` and ``--rates``; None where they were not typed.
    """

    def __init__(
        self,
        planned: Planned,
        groups: Sequence[Group],
        memory_gb: float | None,
        step_s: float | None,
        rates: Rates | None,
    ) -> None:
        self._planned, self._memory_gb, self._step_s, self._rates = planned, memory_gb, step_s, rates
        self._groups = {job.identity: group for group in groups for job in group.jobs}
        self._known: dict[str, Hours | str] = {}

    def __call__(self, job: Job, settings: Settings) -> Hours | str:
        """Return a job's forecast, or the reason why there is none."""
        group = self._groups.get(job.identity)
        counting = [settings.plain.get(name) for name in COUNTING]
        name = json.dumps([settings.names, counting, str(group and group.device)], default=str, sort_keys=True)
        if name not in self._known:
            self._known[name] = self._forecast(job, settings, group)
        return self._known[name]

    def _forecast(self, job: Job, settings: Settings, group: Group | None) -> Hours | str:
        processes = processes_of(self._planned.launcher)
        kind = group.device.kind if group else kind_of(settings, self._planned.launcher, self._memory_gb)
        rates, unknown = self._rates_for(kind, group)
        work = self._work(job, settings, group, rates) if group else None
        step = forecast(work) if work is not None and rates is not None else None
        before = earlier(settings, processes, kind)
        train = settings.train
        if work is not None:
            checkpoint_s = checkpoint_bytes(work) / work.rates.disk.value
        else:
            checkpoint_s = (one_checkpoint(job) or 0) / H100.disk.value
        if self._step_s is None and before is None and step is None:
            return unknown
        step_s, measured, source = self._step(before, step, rates)
        evaluation_s, evaluation_measured, more = evaluation_of(before, step, rates if measured else None)
        hours = Hours(
            steps=train.steps,
            step_s=step_s,
            evaluations=evaluations(train),
            evaluation_s=evaluation_s,
            probe_s=probe_of(before, None if measured else step),
            saves=saves(train, step_s),
            checkpoint_s=checkpoint_s,
            cards=cards_of(self._planned.launcher, kind),
            measured=measured,
            evaluation_measured=evaluation_measured,
            source=source + more,
        )
        return hours if measured or work is None or step is None else with_longest(hours, work, step)

    def _step(self, before: Earlier | None, step: Step | None, rates: Rates | None) -> tuple[float, bool, str]:
        """Return the seconds of a step: typed, measured in earlier runs, or by rates; whether measured; the source."""
        if self._step_s is not None:
            return self._step_s, True, "measured (--step-seconds)"
        if before is not None:
            runs = f"{before.runs} earlier run{'s' * (before.runs > 1)} here"
            return before.step_s, True, f"measured (median of {before.steps} step{'s' * (before.steps > 1)} of {runs})"
        assert step is not None
        assert rates is not None
        return step.total, False, f"by {rates.source()}"

    def _rates_for(self, kind: str, group: Group | None) -> tuple[Rates | None, str]:
        """Return the rates of the job's card, or the reason why none are known."""
        measure = "run a few steps here first, or give --step-seconds N"
        if kind == "cpu":
            return None, f"no rate is known for a CPU, and no earlier run here is like this one; {measure}"
        if group is None:
            return None, f"the model's sizes are not known here, and no earlier run here is like this one; {measure}"
        if self._rates is not None:
            return self._rates, ""
        away = isinstance(self._planned.launcher, SlurmLauncher) or not torch.cuda.is_available()
        if away:
            return H100, ""
        card = torch.cuda.get_device_name()
        return rates_of(card), f"no rate is known for a {card}; give --rates FILE or --step-seconds N"

    def _work(self, job: Job, settings: Settings, group: Group, rates: Rates | None) -> Work:
        """Return the input of a job's forecast."""
        case = group.case
        limit = settings.engine.max_new_tokens
        evaluated = problems(self._planned, job, settings)
        sizes = case.sizes(settings)
        return Work(sizes, settings, case.lengths, case.layout, rates or H100, max(1.0, MEAN * limit), evaluated)


def with_longest(hours: Hours, work: Work, step: Step) -> Hours:
    """Return a forecast by rates whose source also says what it assumes, and how long it is if every response is as long as may
    be."""
    longest = as_long_as_may_be(work)
    total_s = dataclasses.replace(
        hours,
        step_s=longest.total,
        evaluation_s=longest.evaluation,
        probe_s=longest.probe,
        saves=saves(work.settings.train, longest.total),
    ).total_s
    rows = f"{step.rows} rows at once{' as if they fitted' * (not step.fits)}"
    words = f"{rows}, responses of {work.response:.0f} tokens on average (assumed)"
    return dataclasses.replace(hours, source=f"{hours.source}; {words}; {duration(total_s)} if all have {work.limit}")


def probe_of(before: Earlier | None, step: Step | None) -> float:
    """Return the seconds of a probe of the teacher: measured, or by rates; 0 where they are not known."""
    if before is not None and before.probe_s is not None:
        return before.probe_s
    return step.probe if step is not None else 0.0


def evaluation_of(before: Earlier | None, step: Step | None, rates: Rates | None) -> tuple[float | None, bool, str]:
    """Return the seconds of an evaluation, whether they were measured, and words on their source.

    Args:
        rates: the card's where the seconds of a step were measured; None where they come from rates too.
    """
    if before is not None and before.evaluation_s is not None:
        return before.evaluation_s, True, ""
    if step is not None:
        return step.evaluation, False, f", evaluations by {rates.source()}" if rates is not None else ""
    return None, False, ", evaluations not counted"


def problems(planned: Planned, job: Job, settings: Settings) -> int:
    """Return the number of problems of one evaluation, as far as the data was read; else what the config says."""
    count, parts = settings.eval.prompts, planned.parts.get(job.identity)
    tasks: list[Any] = list(parts.suites.values()) or [parts.task] if parts is not None else []
    sizes = [len(getattr(task, "heldout", None) or []) for task in tasks]
    if not sizes or not all(sizes):
        suites = settings.eval.suites.values()
        sizes = [suite.problems or 0 for suite in suites] or [getattr(settings.data, "heldout_prompts", count) or count]
    return sum(min(count, size) if count else size for size in sizes)


def cards_of(launcher: Any, kind: str) -> int:
    """Return the GPUs that a job holds; 0 on a CPU."""
    if kind == "cpu":
        return 0
    if isinstance(launcher, SlurmLauncher):
        return launcher.nodes * (launcher.gpus_per_node or launcher.tasks_per_node)
    return processes_of(launcher)


def check_time(
    planned: Planned, groups: Sequence[Group], memory_gb: float | None, step_s: float | None, rates: Rates | None
) -> list[Finding]:
    """Return the forecast of every group of equal jobs, and what of the time limit cannot work.

    Args:
        groups: the jobs' estimates of memory.
        memory_gb, step_s, rates: ``--memory-gb``, ``--step-seconds`` and ``--rates``; None where they were not typed.
    """
    forecaster = Forecaster(planned, groups, memory_gb, step_s, rates)
    found: dict[Hours | str, list[Job]] = {}
    for job, settings in planned.jobs:
        found.setdefault(forecaster(job, settings), []).append(job)
    results, gpu_s = [], 0.0
    for hours, jobs in found.items():
        count = planned.count * len(jobs) // len(planned.jobs)
        name = f"{count} jobs like {' '.join(jobs[0].overrides)}: " if len(found) > 1 else ""
        if isinstance(hours, str):
            results.append(Finding("skipped", "time", f"{name}{hours}"))
            continue
        gpu_s += count * hours.cards * hours.total_s
        results.append(Finding("ok", "time", name + sentence(hours, count, planned.launcher, bool(name))))
        results += check_limit(hours, planned.launcher, name)
    if len(found) > 1 and gpu_s:
        results.append(Finding("ok", "time", f"{gpu_hours(gpu_s)} of all {planned.count} jobs together"))
    return results


def sentence(hours: Hours, count: int, launcher: Any, named: bool = False) -> str:
    """Return the forecast of ``count`` equal jobs in words.

    Args:
        named: True if the number of jobs stands before the sentence.
    """
    parts = [f"{hours.steps} step{'s' * (hours.steps > 1)} of {short(hours.step_s)}"]
    if hours.evaluation_s is not None:
        parts.append(f"{hours.evaluations} evaluations of {short(hours.evaluation_s)}")
    if hours.probe_s:
        parts.append(f"a probe of the teacher of {short(hours.probe_s)}")
    parts.append(f"{hours.saves} checkpoint{'s' * (hours.saves > 1)} of {short(hours.checkpoint_s)}")
    words = f"{count} jobs, " if count > 1 and not named else ""
    words += f"{duration(hours.total_s)}{' each' * (count > 1)} ({', '.join(parts)})"
    if hours.cards:
        words += f", {gpu_hours(count * hours.cards * hours.total_s)} in all"
    elif count > 1:
        words += f", {duration(count * hours.total_s)} in all"
    if count > 1 and isinstance(launcher, LocalLauncher):
        words += f", {launcher.jobs_at_once()} at a time"
    words += f"; {hours.source}"
    lives = lives_of(hours, launcher)
    if lives > 1:
        limit = f"{launcher.timeout_min} min (hydra.launcher.timeout_min)"
        words += f"; a job needs {lives} lives of {limit} and is queued again {'once' if lives == 2 else f'{lives - 1} times'}"
    return words


def short(seconds: float) -> str:
    """Return seconds as 0.31 s or 4.2 s, and above a minute as 3m05s."""
    if seconds >= 60:
        return duration(seconds)
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def gpu_hours(gpu_s: float) -> str:
    """Return GPU-seconds as GPU-hours."""
    value = gpu_s / 3600
    return f"{value:,.0f} GPU-hours" if value >= 100 else f"{value:.1f} GPU-hours"


def usable_s(launcher: SlurmLauncher) -> float:
    """Return the seconds of a job's life before SLURM's signal."""
    return float(launcher.timeout_min * 60 - launcher.signal_delay_s)


def lives_of(hours: Hours, launcher: Any) -> int:
    """Return how many times a job is started under SLURM's time limit; 1 without one."""
    if not isinstance(launcher, SlurmLauncher) or usable_s(launcher) <= 0:
        return 1
    return max(1, math.ceil(hours.total_s / usable_s(launcher)))


def check_limit(hours: Hours, launcher: Any, name: str) -> list[Finding]:
    """Check that a job's life is long enough for one checkpoint: the evaluation at the start, a step, and writing it.

    A problem only where the seconds of a step were measured; an evaluation counts only if it was measured too.
    """
    if not isinstance(launcher, SlurmLauncher):
        return []
    counted = hours.evaluation_measured or not hours.measured
    evaluation_s = (hours.evaluation_s or 0.0) if counted else 0.0
    need = evaluation_s + hours.step_s + hours.checkpoint_s
    if need <= usable_s(launcher):
        return []
    first = f"the first evaluation ({short(evaluation_s)}), " if evaluation_s else ""
    minutes = int((need + launcher.signal_delay_s) // 60) + 1
    words = (
        f"{name}no life of a job could write a checkpoint: {first}a step ({short(hours.step_s)}) and a checkpoint "
        f"({short(hours.checkpoint_s)}) take {short(need)}, {short(max(0.0, usable_s(launcher)))} come before the signal; set "
        f"hydra.launcher.timeout_min={minutes} or more, or a smaller train.prompts_per_step"
    )
    if hours.measured:
        return [Finding("problem", "time", words)]
    return [Finding("warning", "time", f"{words} ({hours.source.partition(';')[0]})")]
