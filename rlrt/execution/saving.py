"""From a run's state to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rlrt.distributed.sharding import whole
from rlrt.model.lora import adapters, named_weights
from rlrt.records import checkpoints
from rlrt.training.learner import Learner


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
        teacher=None if moving is None else gathered(moving.named_parameters(), main),
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
