"""Advice on which key to change if memory does not suffice: every change is tried on the estimate before it is proposed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlrt.config.schema import Settings
from rlrt.errors import amount
from rlrt.execution.memory.estimate import Layout, Lengths, estimate
from rlrt.execution.memory.sizes import Sizes

MANY = (2, 4, 8, 16, 32, 64)
"""Numbers of processes that sharding is tried with."""
RANK = 16
"""LoRA rank that the advice proposes."""
SHORTEST = 256
"""Tokens of the shortest responses that the advice proposes."""
SAME, PRECISION, EXPERIMENT = 0, 2, 4
"""How far a change goes: the same is learned, in another precision, or something else is learned."""
HOST = 1
"""Added to one of them: tensors may go to the host's memory too, which takes time."""
LEAST = 0.03
"""Share of the needed memory that a change must save to be proposed among several."""


@dataclass(frozen=True)
class Case:
    """Input of an estimate.

    Attributes:
        sizes: function from settings to the model's sizes, adapters included.
    """

    settings: Settings
    lengths: Lengths
    layout: Layout
    sizes: Callable[[Settings], Sizes]

    def peak(self) -> int:
        """Return the bytes that a device must have."""
        return estimate(self.sizes(self.settings), self.settings, self.lengths, self.layout).peak

    def with_key(self, section: str, name: str, value: object) -> Case:
        """Return a copy with one key changed."""
        changed: Any = dataclasses.replace(getattr(self.settings, section), **{name: value}) if section else value
        change: dict[str, Any] = {section or name: changed}
        settings = dataclasses.replace(self.settings, **change)
        return dataclasses.replace(self, settings=settings)


@dataclass(frozen=True)
class Change:
    """A key with its value, and the case after the change."""

    assignment: str
    case: Case


def ladder(case: Case, section: str, name: str, values: Sequence[object]) -> list[Change]:
    """Return one key's changes, one for each value."""
    key = f"{section}.{name}" if section else name
    return [Change(f"{key}={str(v).lower() if v is True else v}", case.with_key(section, name, v)) for v in values]


def halves(value: int, least: int) -> list[int]:
    """Return the value halved again and again, down to ``least``."""
    smaller = []
    while value // 2 >= least:
        value //= 2
        smaller.append(value)
    return smaller if value <= least else [*smaller, least]


def changes(case: Case, reach: int) -> Iterator[list[Change]]:
    """Yield each key's changes from mild to strong.

    Args:
        reach: how far the changes may go: ``SAME``, ``PRECISION``, or ``EXPERIMENT``, each with or without ``HOST``.
    """
    yield from same_results(case)
    if reach & HOST:
        yield from to_the_host(case)
    settings, engine, train = case.settings, case.settings.engine, case.settings.train
    if reach >= PRECISION and (settings.dtype == "float32" or (settings.dtype == "auto" and case.layout.kind == "cpu")):
        yield ladder(case, "", "dtype", ["bfloat16"])
    if reach < EXPERIMENT:
        return
    if settings.model.lora is None:
        yield ladder(case, "model", "lora", [RANK])
    if settings.teacher.weights != "live":
        yield ladder(case, "teacher", "weights", ["live"])
    if train.kl_coef > 0:
        yield ladder(case, "train", "kl_coef", [0])
    shorter = [n for n in halves(engine.max_new_tokens, SHORTEST) if n < engine.max_new_tokens]
    yield ladder(case, "engine", "max_new_tokens", shorter)


def same_results(case: Case) -> Iterator[list[Change]]:
    """Yield the changes after which the same is learned.

    They are: how many rows at once, recomputing, sharding, an engine's share.
    """
    settings, engine, train = case.settings, case.settings.engine, case.settings.train
    engine_keys = {f.name for f in dataclasses.fields(engine)}
    longest = case.lengths.prompt + engine.max_new_tokens
    if "release_memory" in engine_keys and not engine.release_memory:
        yield ladder(case, "engine", "release_memory", [True])
    if "max_rows" in engine_keys and engine.exact:  # another engine holds as many rows as its share of the device takes
        yield ladder(case, "engine", "max_rows", halves(engine.max_rows, 1))
    yield ladder(case, "train", "token_budget", halves(train.budget, min(longest, train.budget)))
    if not settings.model.gradient_checkpointing:
        yield ladder(case, "model", "gradient_checkpointing", [True])
    least = case.layout.processes + case.layout.sharded
    sharded = [dataclasses.replace(case.layout, processes=n, sharded=True) for n in MANY if n >= least]
    assignment = "distributed.strategy=fsdp with {} processes"
    yield [Change(assignment.format(p.processes), dataclasses.replace(case, layout=p)) for p in sharded]
    if engine.gpu_memory_utilization is not None and "gpu_memory_utilization" in engine_keys:
        shares = [s / 10 for s in range(8, 1, -1) if s / 10 < engine.gpu_memory_utilization]
        yield ladder(case, "engine", "gpu_memory_utilization", shares)


def to_the_host(case: Case) -> Iterator[list[Change]]:
    """Yield the changes that put tensors of a GPU into the host's memory for a while; the same is learned."""
    model = case.settings.model
    if case.layout.kind == "cpu":
        return
    if case.settings.train.offload == "none":
        yield ladder(case, "train", "offload", ["optimiser"])
    if model.gradient_checkpointing and not model.offload_activations:
        yield ladder(case, "model", "offload_activations", [True])


def single(case: Case, available: int, reach: int = SAME) -> list[tuple[str, int]]:
    """Return every key that alone makes the case fit, at its mildest value: (assignment, peak)."""
    fitting_keys = []
    for values in changes(case, reach):
        fitting = next(((c.assignment, peak) for c in values if (peak := c.case.peak()) <= available), None)
        if fitting is not None:
            fitting_keys.append(fitting)
    return fitting_keys


def together(case: Case, available: int, reach: int) -> tuple[list[str], int]:
    """Return keys that together make the case fit, and the peak with them: the one that saves most first, ties in the order
    of ``changes``; then each at the mildest value that still fits. The peak is above ``available`` if nothing suffices."""
    chosen: dict[str, str] = {}
    now, peak = case, case.peak()
    while peak > available:
        best: tuple[int, Change] | None = None
        for values in changes(now, reach):
            if not values:
                continue
            tried = [(change.case.peak(), change) for change in values]
            candidate = next((t for t in tried if t[0] <= available), min(tried, key=lambda t: t[0]))
            if best is None or candidate[0] < best[0]:
                best = candidate
        if best is None or best[0] > peak * (1 - LEAST):
            return list(chosen.values()), peak
        peak, change = best
        now = change.case
        chosen[key_of(change.assignment)] = change.assignment
    for key in sorted(chosen, key=lambda k: k != "distributed.strategy"):  # more GPUs cost most
        chosen, peak = milder(case, chosen, key, available, reach, peak)
    return list(chosen.values()), peak


def milder(
    case: Case, chosen: dict[str, str], key: str, available: int, reach: int, peak: int
) -> tuple[dict[str, str], int]:
    """Return the chosen assignments with the mildest value of one key that still fits beside the others, and the peak."""
    others = case
    for assignment in [a for k, a in chosen.items() if k != key]:
        change = find(others, assignment, reach)
        if change is None:
            return chosen, peak
        others = change.case
    if (alone := others.peak()) <= available:
        return {k: a for k, a in chosen.items() if k != key}, alone
    values = next((v for v in changes(others, reach) if v and key_of(v[0].assignment) == key), [])
    for change in values:
        if (with_it := change.case.peak()) <= available:
            return chosen | {key: change.assignment}, with_it
    return chosen, peak


def find(case: Case, assignment: str, reach: int) -> Change | None:
    """Return the change of a case with this assignment."""
    return next((c for values in changes(case, reach) for c in values if c.assignment == assignment), None)


def key_of(assignment: str) -> str:
    """Return the key's name."""
    return assignment.split("=", 1)[0]


def advise(case: Case, available: int) -> str:
    """Return a sentence with the keys to set; the estimate was repeated with them.

    Keys that change what is learned come last, and are said to do so.
    """
    least: tuple[int, list[str]] = (case.peak(), [])
    for reach, warning in (
        (SAME, ""),
        (SAME | HOST, ""),
        (PRECISION, ", which changes the precision"),
        (PRECISION | HOST, ", which changes the precision"),
        (EXPERIMENT, ", which changes the experiment"),
        (EXPERIMENT | HOST, ", which changes the experiment"),
    ):
        if alone := single(case, available, reach):
            options = [f"{assignment} (then {amount(peak)})" for assignment, peak in alone[:3]]
            return "set " + ", or ".join(options) + warning
        assignments, peak = together(case, available, reach)
        if peak <= available:
            return f"set {' and '.join(assignments)} (then {amount(peak)}){warning}"
        least = min(least, (peak, assignments), key=lambda found: found[0])
    peak, assignments = least
    partial = f"{' and '.join(assignments)} would still need {amount(peak)}; " if assignments else ""
    return f"{partial}set model=NAME to a smaller model, or give it a device of {amount(peak)}"
