"""From a run's state to a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from rlrt.config.schema import Train
from rlrt.distributed.sharding import whole
from rlrt.distributed.world import World
from rlrt.model.lora import adapters, named_weights
from rlrt.records import checkpoints
from rlrt.records.files import read_json, write_json
from rlrt.training.learner import Learner


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


def save_checkpoint(
    learner: Learner, folder: Path, step: int, keep_last: int, pending: dict[str, Any] | None = None
) -> None:
    """Write everything that a run needs to go on to the bit; any number of ranks can go on from it.

    All ranks gather the sharded tensors; rank 0 writes.

    Args:
        pending: rollouts of the next step that were sampled ahead.
    """
    main = learner.world.main
    moving = learner.teacher.state()
    weights = gathered(named_weights(learner.policy.model), main)
    snapshot = checkpoints.Snapshot(
        step=step,
        optimiser=whole_optimiser(learner.policy.optimiser.state_dict(), main),
        teacher=None if moving is None else gathered(moving.items(), main),
        adapters=gathered(adapters(learner.policy.model).items(), main) or None,
        state={"method": learner.method.state_dict()} | ({} if pending is None else {"pending": pending}),
    )
    learner.world.on_main(
        lambda: checkpoints.save(
            folder, snapshot, lambda model_folder: learner.policy.save(model_folder, weights), keep_last
        )
    )


@torch.no_grad()
def gathered(weights: Iterable[tuple[str, Any]], keep: bool) -> dict[str, torch.Tensor]:
    """Gather full tensors to the CPU one by one; only ranks with ``keep=True`` store them."""
    tensors = {}
    for name, weight in weights:
        full = whole(weight).detach()
        if keep:
            tensors[name] = full.cpu()
    return tensors


def whole_optimiser(state: dict[str, Any], keep: bool) -> dict[str, Any]:
    """An optimiser's ``state_dict`` with full tensors, on ranks with ``keep=True``."""
    moments = {i: gathered(values.items(), keep) for i, values in state["state"].items()}
    return {"state": moments, "param_groups": state["param_groups"]}
