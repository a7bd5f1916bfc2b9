"""When checkpoints are written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rlrt.config.schema import Train
from rlrt.distributed.world import World
from rlrt.records import checkpoints
from rlrt.records.files import read_json, write_json


class SaveRule:
    """Decides at the end of each step whether a checkpoint is due; all ranks decide alike.

    Args:
        train: the config section.
        folder: of the run's checkpoints.
        world: the ranks.
        clock: seconds; tests replace it.
    """

    def __init__(self, train: Train, folder: Path, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self._train, self._folder, self._world, self._clock = train, folder, world, clock
        self._last = clock()
        stored = read_json(folder / checkpoints.BEST)
        known = stored.get("metric") == train.keep_best and isinstance(stored.get("value"), (int, float))
        written = (
            folder / f"step_{stored.get('step')}"
        ).is_dir()  # a kill may come between the note and the checkpoint
        self._best = float(stored["value"]) if known and written else -math.inf

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        """True if a checkpoint of this step must be written: by steps, by minutes, or because it is the best so far."""
        every, minutes = self._train.save_every, self._train.save_minutes
        late = self._world.main and minutes > 0 and self._clock() - self._last >= 60 * minutes
        improved = self._improved(step, metrics)
        due = (every > 0 and step % every == 0) or self._world.any(late) or improved
        if due:
            self._last = self._clock()
        return due

    def _improved(self, step: int, metrics: Mapping[str, float]) -> bool:
        name = self._train.keep_best
        value = metrics.get(name) if name is not None else None
        if value is None or not value > self._best:
            return False
        self._best = value
        if self._world.main:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / checkpoints.BEST, {"metric": name, "value": value, "step": step})
        return True
