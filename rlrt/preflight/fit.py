"""The memory of every job: estimated, compared with what there is, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.preflight.advice import Case, advise
from rlrt.preflight.device import Device, device_of, processes_of
from rlrt.preflight.finding import Finding
from rlrt.preflight.memory.estimate import PHASES, Estimate, Place, estimate, parts_of
from rlrt.preflight.model import builder_of, context_of, lengths_of, model_sizes
from rlrt.preflight.plan import Planned
from rlrt.reporting.terminal import WIDTH, gigabytes, table
from rlrt.sweep.plan import Job


@dataclass(frozen=True)
class Group:
    """Jobs with one estimate.

    Attributes:
        jobs: they.
        case: what was estimated.
        found: the estimate.
        device: where they run.
        said: where the length of prompts comes from.
    """

    jobs: list[Job]
    case: Case
    found: Estimate
    device: Device
    said: str


def place_of(settings: Settings, launcher: object, device: Device) -> Place:
    """Where a job's processes compute; ``distributed.strategy`` where the config has such a section."""
    strategy = getattr(getattr(settings, "distributed", None), "strategy", "ddp")
    processes = processes_of(launcher)
    return Place(device.kind, processes, strategy == "fsdp" and processes > 1, device.whole)


def groups_of(planned: Planned, memory_gb: float | None) -> tuple[list[Group], list[Finding]]:
    """Every job's estimate, equal ones together, the largest first; and what could not be estimated."""
    groups: dict[str, Group] = {}
    unknown: dict[str, Finding] = {}
    for job, settings in planned.jobs:
        try:
            sizes, context = model_sizes(settings), context_of(settings)
        except UserError as error:
            unknown[str(error)] = Finding("skipped", "memory", str(error))
            continue
        device = device_of(settings, planned.launcher, planned.several, memory_gb)
        try:
            lengths, said = lengths_of(settings, builder_of(settings), context)
        except UserError:  # a template that does not do is said by the check of the data
            lengths, said = lengths_of(settings, None, context)
        place = place_of(settings, planned.launcher, device)
        found = estimate(sizes, settings, lengths, place)
        group = Group([], Case(settings, lengths, place, model_sizes), found, device, said)
        groups.setdefault(repr((found, device)), group).jobs.append(job)
    return sorted(groups.values(), key=lambda g: -g.found.peak), list(unknown.values())


def shown(groups: Sequence[Group], several: bool) -> str:
    """The estimate of the job that needs most, part by part; and a line for each other kind of job."""
    first = groups[0]
    found, place, lengths = first.found, first.case.place, first.case.lengths
    free = "an unknown amount" if first.device.free is None else gigabytes(first.device.free)
    lines = [
        f"memory of one process of {place.processes} on {place.kind}: {free} ({first.device.said})",
        f"prompts of {lengths.prompt} tokens ({first.said}), with a solution {lengths.context}; "
        f"responses of {first.case.settings.engine.max_new_tokens}",
        "",
        breakdown(found),
    ]
    if several:
        rows = [["jobs", "needs most in", "GB", "for example"]]
        for group in groups:
            words = " ".join(group.jobs[0].overrides)
            rows.append([str(len(group.jobs)), group.found.worst, number(group.found.peak), words[: WIDTH - 36]])
        lines += ["", table(rows)]
    return "\n".join(lines)


def breakdown(found: Estimate) -> str:
    """Gigabytes by part and phase."""
    rows = [["GB", *PHASES]]
    for part in parts_of(found):
        rows.append([part, *(number(found.phases[phase].get(part, 0)) for phase in PHASES)])
    rows.append(["total", *(number(found.total(phase)) for phase in PHASES)])
    return table(rows)


def number(size: int) -> str:
    """Bytes in 10^9, two digits after the point."""
    return f"{size / 1e9:.2f}"


def findings(groups: Sequence[Group]) -> list[Finding]:
    """A line for each kind of job: that it fits, or what to change."""
    found = []
    for group in groups:
        peak, free, phase = group.found.peak, group.device.free, group.found.worst
        name = f"{len(group.jobs)} jobs like {' '.join(group.jobs[0].overrides)}: " if len(groups) > 1 else ""
        if free is None:
            words = f"{name}needs {gigabytes(peak)}; what the node has is {group.device.said}"
            found.append(Finding("skipped", "memory", words))
        elif peak <= free:
            found.append(Finding("ok", "memory", f"{name}{gigabytes(peak)} of {gigabytes(free)}"))
        else:
            part = max(group.found.phases[phase], key=lambda p: group.found.phases[phase][p])
            largest = f"{part} {gigabytes(group.found.phases[phase][part])}"
            sharing = f", which {group.device.sharing} jobs share" if group.device.sharing > 1 else ""
            words = f"{name}{phase} needs {gigabytes(peak)} ({largest}) of {gigabytes(free)}{sharing}"
            found.append(Finding("problem", "will not fit", f"{words}; {remedy(group)}"))
    return found


def remedy(group: Group) -> str:
    """Fewer jobs beside each other where that is enough, else what the estimate says."""
    free, sharing = group.device.free or 0, group.device.sharing
    if sharing > 1 and group.found.peak <= free * sharing:
        jobs = max(1, free * sharing // group.found.peak)
        return f"set hydra.launcher.n_jobs={jobs}"
    return advise(group.case, free)
