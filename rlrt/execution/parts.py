"""The live objects of a run: made from its settings, which stay as they were checked."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlrt.config.schema import Settings
from rlrt.distributed.cards import set_aside, visible_cards
from rlrt.engines.engine import Engine
from rlrt.methods.method import Method
from rlrt.tasks.base import Task
from rlrt.tasks.benchmark import Benchmark


@dataclass
class Parts:
    """One run's own objects of the classes that its config names.

    Attributes:
        method: with the state of its slots.
        task: its problems are there once they are prepared (``rlrt.execution.data``).
        engine: samples for training and evaluation.
        suites: benchmarks by name; empty: held-out problems of the task are evaluated.
    """

    method: Method
    task: Task
    engine: Engine
    suites: dict[str, Benchmark]

    def close(self) -> None:
        """End whatever engine, task and benchmarks started."""
        self.engine.close()
        for task in (self.task, *self.suites.values()):
            task.close()


def parts_of(settings: Settings) -> Parts:
    """New objects for a run; ``settings`` keeps its own, which nothing prepares, runs or changes."""
    return copy.deepcopy(Parts(settings.method, settings.data, settings.engine, settings.eval.suites))


def cards_for_engine(settings: Settings) -> list[str]:
    """Set GPUs aside that the engine takes for processes of its own; before CUDA starts.

    Raises:
        UserError: if there are not enough.
    """
    if settings.engine.cards_beside(True) == 0:
        return []
    trains = settings.device != "cpu" and bool(visible_cards())
    return set_aside(settings.engine.cards_beside(trains), trains)


@contextlib.contextmanager
def closing(*parts: Any) -> Iterator[None]:
    """Let parts end what they started (a verifier's processes, an engine), however the run ends."""
    try:
        yield
    finally:
        for part in parts:
            part.close()
