"""Which key to change where memory does not suffice: every change is tried on the estimate before it is named."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlrt.config.schema import Settings
from rlrt.preflight.memory.estimate import Lengths, Place, estimate
from rlrt.preflight.memory.sizes import Sizes
from rlrt.reporting.terminal import gigabytes

MANY = (2, 4, 8, 16, 32, 64)
"""Processes that sharding is tried with."""
RANK = 16
"""Of the adapters that are proposed."""
SHORTEST = 256
"""Tokens below which shorter responses are not proposed."""
LEAST = 0.03
"""Share of what is needed that a change must save to be named among several."""


@dataclass(frozen=True)
class Case:
    """What is estimated.

    Attributes:
        sizes: of the model under adapters of a rank, or without.
    """

    settings: Settings
    lengths: Lengths
    place: Place
    sizes: Callable[[Settings], Sizes]

    def peak(self) -> int:
        """Bytes that a device must have."""
        return estimate(self.sizes(self.settings), self.settings, self.lengths, self.place).peak

    def with_key(self, section: str, name: str, value: object) -> Case:
        """The same with one key changed."""
        settings = copy.copy(self.settings)
        if section:
            part = copy.copy(getattr(settings, section))
            setattr(part, name, value)
            setattr(settings, section, part)
        else:
            setattr(settings, name, value)
        return dataclasses.replace(self, settings=settings)


@dataclass(frozen=True)
class Change:
    """A key and its value, and the case that it makes; several changes of one key lie in ``less``, from little to much."""

    words: str
    case: Case


def ladder(case: Case, section: str, name: str, values: Sequence[object]) -> list[Change]:
    """One key's values."""
    key = f"{section}.{name}" if section else name
    return [Change(f"{key}={str(v).lower() if v is True else v}", case.with_key(section, name, v)) for v in values]


def halves(value: int, least: int) -> list[int]:
    """Smaller values, down to the least that makes sense."""
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found if value <= least else [*found, least]


def changes(case: Case) -> Iterator[list[Change]]:
    """For each key its values from little to much; keys that change no result first, then precision, then what is learned."""
    settings, engine, train = case.settings, case.settings.engine, case.settings.train
    longest = case.lengths.prompt + engine.max_new_tokens
    if hasattr(engine, "release_memory") and not engine.release_memory:
        yield ladder(case, "engine", "release_memory", [True])
    if hasattr(engine, "max_rows"):
        yield ladder(case, "engine", "max_rows", halves(engine.max_rows, 1))
    yield ladder(case, "train", "token_budget", halves(train.token_budget, min(longest, train.token_budget)))
    if not settings.model.gradient_checkpointing:
        yield ladder(case, "model", "gradient_checkpointing", [True])
    if hasattr(settings, "distributed"):
        least = case.place.processes + case.place.sharded
        sharded = [dataclasses.replace(case.place, processes=n, sharded=True) for n in MANY if n >= least]
        words = "distributed.strategy=fsdp with {} processes"
        yield [Change(words.format(p.processes), dataclasses.replace(case, place=p)) for p in sharded]
    if hasattr(engine, "gpu_memory_utilization"):
        shares = [s / 10 for s in range(8, 1, -1) if s / 10 < engine.gpu_memory_utilization]
        yield ladder(case, "engine", "gpu_memory_utilization", shares)
    if settings.dtype == "float32":
        yield ladder(case, "", "dtype", ["bfloat16"])
    if settings.teacher.weights != "live":
        yield ladder(case, "teacher", "weights", ["live"])
    if train.kl_coef > 0:
        yield ladder(case, "train", "kl_coef", [0])
    if settings.model.lora is None:
        yield ladder(case, "model", "lora", [RANK])
    shorter = [n for n in halves(engine.max_new_tokens, SHORTEST) if n < engine.max_new_tokens]
    yield ladder(case, "engine", "max_new_tokens", shorter)


def single(case: Case, available: int) -> list[tuple[str, int]]:
    """Every key that alone makes it fit, at its mildest value: (words, peak)."""
    found = []
    for values in changes(case):
        fitting = next(((c.words, peak) for c in values if (peak := c.case.peak()) <= available), None)
        if fitting is not None:
            found.append(fitting)
    return found


def together(case: Case, available: int) -> tuple[list[str], int]:
    """Keys that make it fit together, and the peak then: the one that saves most first, by the order of ``changes`` where two
    save the same. The peak is above ``available`` where nothing suffices."""
    words: list[str] = []
    peak = case.peak()
    used: set[str] = set()
    while peak > available:
        best: tuple[int, Change] | None = None
        for values in changes(case):
            if not values or key_of(values[0]) in used:
                continue
            tried = [(change.case.peak(), change) for change in values]
            chosen = next((t for t in tried if t[0] <= available), min(tried, key=lambda t: t[0]))
            if best is None or chosen[0] < best[0]:
                best = chosen
        if best is None or best[0] > peak * (1 - LEAST):
            return words, peak
        peak, change = best
        case = change.case
        used.add(key_of(change))
        words.append(change.words)
    return words, peak


def key_of(change: Change) -> str:
    """The key's name."""
    return change.words.split("=", 1)[0]


def advise(case: Case, available: int) -> str:
    """What to set, as words; the estimate has been made anew with it."""
    alone = single(case, available)
    if alone:
        options = [f"{words} (then {gigabytes(peak)})" for words, peak in alone[:3]]
        return "set " + ", or ".join(options)
    words, peak = together(case, available)
    if peak <= available:
        return f"set {' and '.join(words)} (then {gigabytes(peak)})"
    helped = f"{' and '.join(words)} would still need {gigabytes(peak)}; " if words else ""
    return f"{helped}set model=NAME to a smaller model, or give it a device of {gigabytes(peak)}"
