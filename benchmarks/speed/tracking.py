"""What recording a step costs the training thread: ``python -m benchmarks.speed.tracking FOLDER``; prints a share.

A run of 60 steps with everything on: record, samples, MLflow in a SQLite file. ``Monitor.record`` and ``Monitor.samples`` are
timed; the share is their seconds over those of the steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rlrt.execution.execute
from benchmarks.speed.case import EMBEDDED, Case, settings_of
from rlrt.execution.monitor import Monitor

STEPS = 60


def main(place: Path) -> None:
    """Run, and print the share."""
    uri = f"tracking.uri='sqlite:///{place}/mlflow.db'"
    more = (
        "tracking=mlflow",
        uri,
        f"tracking.artifacts='{place}/artifacts'",
        "eval.prompts=8",
        "eval.samples_per_prompt=1",
    )
    settings = settings_of(
        Case("tiny", str(EMBEDDED)), *more, f"train.steps={STEPS}", "train.save_every=0", "train.eval_every=0"
    )
    spent = {"recording": 0.0, "steps": 0.0}

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Monitor, *arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(self, *arguments, **named)
            finally:
                spent["recording"] += time.perf_counter() - begin

        return run

    record = timed(Monitor.record)

    def recorded(self: Monitor, step: int, metrics: dict[str, float]) -> None:
        spent["steps"] += metrics.get("time/step_s", 0.0)
        record(self, step, metrics)

    Monitor.record, Monitor.samples = recorded, timed(Monitor.samples)  # type: ignore[method-assign]
    (place / "run").mkdir()
    rlrt.execution.execute.execute(settings, place / "run", lambda line: None, lambda: False, progress=False)
    print(spent["recording"] / (spent["steps"] + spent["recording"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
