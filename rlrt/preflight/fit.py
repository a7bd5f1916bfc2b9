"""Memory of every job: the estimate, its comparison with the available memory, and the printed table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlrt.config.schema import Settings
from rlrt.errors import UserError, amount
from rlrt.execution.data import prompts_of
from rlrt.execution.memory.budget import fitting
from rlrt.execution.memory.estimate import (
    PHASES,
    Estimate,
    Layout,
    engine_needs,
    estimate,
    parts_of,
)
from rlrt.execution.memory.lengths import lengths_of
from rlrt.preflight.advice import Case, advise
from rlrt.preflight.device import Device, device_of, processes_of
from rlrt.preflight.finding import Finding
from rlrt.preflight.model import builder_of, context_of, model_sizes
from rlrt.preflight.plan import Planned
from rlrt.reporting.terminal import WIDTH, table
from rlrt.sweep.plan import Job
from rlrt.types import Prompt


@dataclass(frozen=True)
class Group:
    """Jobs that have the same estimate.

    Attributes:
        jobs: the jobs.
        case: input of the estimate.
        estimate: bytes by phase and part.
        device: the device that the jobs run on.
        length_source: source of the prompts' length.
    """

    jobs: list[Job]
    case: Case
    estimate: Estimate
    device: Device
    length_source: str


def layout_of(settings: Settings, launcher: object, device: Device) -> Layout:
    """Return the layout of a job's processes; sharded under ``distributed.strategy=fsdp``, if the config has such a key."""
    strategy = settings.distributed.strategy
    processes = processes_of(launcher)
    return Layout(device.kind, processes, strategy == "fsdp" and processes > 1, device.whole)


def groups_of(planned: Planned, memory_gb: float | None) -> tuple[list[Group], list[Finding]]:
    """Return every job's estimate, equal ones grouped, the largest first; and findings for jobs without an estimate."""
    groups: dict[str, Group] = {}
    unknown: dict[str, Finding] = {}
    for job, settings in planned.jobs:
        try:
            sizes, context = model_sizes(settings), context_of(settings)
        except UserError as error:
            unknown[str(error)] = Finding("skipped", "memory", str(error))
            continue
        device = device_of(settings, planned.launcher, planned.several, memory_gb)
        prompts = known_prompts(planned, job.identity)
        try:
            lengths, source = lengths_of(settings, prompts, builder_of(settings), context)
        except UserError:  # the check of the data reports the invalid template
            lengths, source = lengths_of(settings, prompts, None, context)
        layout = layout_of(settings, planned.launcher, device)
        if settings.train.token_budget == "auto" and device.free is not None:
            settings, _ = fitting(sizes, settings, lengths, layout, device.free)
        group_estimate = estimate(sizes, settings, lengths, layout)
        group = Group([], Case(settings, lengths, layout, model_sizes), group_estimate, device, source)
        groups.setdefault(repr((group_estimate, device)), group).jobs.append(job)
    return sorted(groups.values(), key=lambda g: -g.estimate.peak), list(unknown.values())


def known_prompts(planned: Planned, identity: str) -> list[Prompt]:
    """Return a job's prompts; empty where its data could not be read."""
    parts = planned.parts.get(identity)
    try:
        return prompts_of(parts) if parts is not None else []
    except AttributeError:  # a task that failed in prepare has no prompts yet
        return []


def memory_report(groups: Sequence[Group], several: bool) -> str:
    """Return the estimate of the job that needs most, part by part, and a line for each other group of jobs."""
    first = groups[0]
    largest, layout, lengths = first.estimate, first.case.layout, first.case.lengths
    free = "an unknown amount" if first.device.free is None else amount(first.device.free)
    lines = [
        f"memory of one process of {layout.processes} on {layout.kind}: {free} ({first.device.source})",
        f"prompts of {lengths.prompt} tokens ({first.length_source}), with a solution {lengths.context}; "
        f"responses of {first.case.settings.engine.max_new_tokens}",
        "",
        breakdown(largest),
    ]
    if several:
        rows = [["jobs", "needs most in", "GB", "for example"]]
        for group in groups:
            overrides = " ".join(group.jobs[0].overrides)
            rows.append(
                [str(len(group.jobs)), group.estimate.worst, number(group.estimate.peak), overrides[: WIDTH - 36]]
            )
        lines += ["", table(rows)]
    return "\n".join(lines)


def breakdown(estimate: Estimate) -> str:
    """Return a table of gigabytes by part and phase."""
    rows = [["GB", *PHASES]]
    for part in parts_of(estimate):
        rows.append([part, *(number(estimate.phases[phase].get(part, 0)) for phase in PHASES)])
    rows.append(["total", *(number(estimate.total(phase)) for phase in PHASES)])
    return table(rows)


def number(size: int) -> str:
    """Return bytes in 10^9 with two decimals."""
    return f"{size / 1e9:.2f}"


def findings(groups: Sequence[Group]) -> list[Finding]:
    """Return a finding for each group of jobs: that it fits, or which key to change."""
    results = []
    for group in groups:
        peak, free, phase = group.estimate.peak, group.device.free, group.estimate.worst
        name = f"{len(group.jobs)} jobs like {' '.join(group.jobs[0].overrides)}: " if len(groups) > 1 else ""
        if free is None:
            sentence = f"{name}needs {amount(peak)}; the node's memory is {group.device.source}"
            results.append(Finding("skipped", "memory", sentence))
        elif peak <= free:
            results.append(Finding("ok", "memory", f"{name}{amount(peak)} of {amount(free)}"))
        else:
            part = max(group.estimate.phases[phase], key=lambda p: group.estimate.phases[phase][p])
            largest = f"{part} {amount(group.estimate.phases[phase][part])}"
            sharing = f", which {group.device.sharing} jobs share" if group.device.sharing > 1 else ""
            sentence = f"{name}{phase} needs {amount(peak)} ({largest}) of {amount(free)}{sharing}"
            results.append(Finding("problem", "will not fit", f"{sentence}; {remedy(group)}"))
        if share := too_small_share(group):
            results.append(share)
    return results


def too_small_share(group: Group) -> Finding | None:
    """Return the finding for a share of the device that does not hold what the engine needs; None if there is none."""
    case, device = group.case, group.device
    share = case.settings.engine.gpu_memory_utilization
    if share is None or not case.settings.engine.own_card or device.kind == "cpu" or device.whole is None:
        return None
    needed = engine_needs(case.sizes(case.settings), case.settings, case.lengths, case.layout)
    if needed <= share * device.whole:
        return None
    sentence = (
        f"vLLM needs {amount(needed)} for its weights and one response, and engine.gpu_memory_utilization={share:g} is "
        f"{amount(int(share * device.whole))}; set engine.gpu_memory_utilization=null to give it what the trainer leaves"
    )
    return Finding("problem", "engine", sentence)


def remedy(group: Group) -> str:
    """Return the key to change: fewer parallel jobs if that is enough, else the advice from the estimate."""
    free, sharing = group.device.free or 0, group.device.sharing
    if sharing > 1 and group.estimate.peak <= free * sharing:
        jobs = max(1, free * sharing // group.estimate.peak)
        return f"set hydra.launcher.n_jobs={jobs}"
    return advise(group.case, free)
