"""From a run's state to a checkpoint, and back to where it was."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rlrt import checkpoints
from rlrt.config.schema import Settings
from rlrt.distributed.sharding import like, put, whole
from rlrt.errors import UserError
from rlrt.folder import RunFolder
from rlrt.learner import Learner
from rlrt.lora import adapters, named_weights
from rlrt.paths import CHECKSUMS, resolve_path
from rlrt.policy import load

log = logging.getLogger("rlrt")


def check_saved(path: str) -> None:
    """Refuse a checkpoint as ``model.path`` that is not as it was written.

    Raises:
        UserError: naming the file.
    """
    folder = Path(resolve_path(path)).expanduser()
    wrong = checkpoints.damage(folder) if (folder / CHECKSUMS).is_file() else None
    if wrong is not None:
        raise UserError(f"model.path: the checkpoint {folder} is damaged ({wrong}); give another one's folder.")


def save_checkpoint(
    learner: Learner, folder: Path, step: int, keep_last: int, pending: dict[str, Any] | None = None
) -> None:
    """Everything the run needs to go on to the bit, whole: any number of processes can go on from it.

    All processes of a run gather what they share; the main one writes.

    Args:
        pending: rollouts of the next step that were sampled ahead.
    """
    main = learner.world.main
    moving = learner.teacher.state()
    weights = kept(named_weights(learner.policy.model), main)
    snapshot = checkpoints.Snapshot(
        step=step,
        optimiser=whole_optimiser(learner.policy.optimiser.state_dict(), main),
        teacher=None if moving is None else kept(moving.named_parameters(), main),
        adapters=kept(adapters(learner.policy.model).items(), main) or None,
        state={"method": learner.method.state_dict()} | ({} if pending is None else {"pending": pending}),
    )
    learner.world.on_main(
        lambda: checkpoints.save(folder, snapshot, lambda place: learner.policy.save(place, weights), keep_last)
    )


@torch.no_grad()
def kept(weights: Iterable[tuple[str, Any]], here: bool) -> dict[str, torch.Tensor]:
    """Whole weights by name, on the CPU; gathered one at a time, and kept where ``here``."""
    found = {}
    for name, weight in weights:
        gathered = whole(weight).detach()
        if here:
            found[name] = gathered.cpu()
    return found


def whole_optimiser(state: dict[str, Any], here: bool) -> dict[str, Any]:
    """An optimiser's ``state_dict`` with whole tensors."""
    moments = {i: kept(values.items(), here) for i, values in state["state"].items()}
    return {"state": moments, "param_groups": state["param_groups"]}


def restore_checkpoint(learner: Learner, checkpoint: Path, settings: Settings) -> tuple[int, dict[str, Any] | None]:
    """Take over a checkpoint; returns its step, and rollouts that were sampled ahead."""
    snapshot = checkpoints.read(checkpoint)
    policy = learner.policy
    if snapshot.adapters is None:
        saved, _ = load(str(checkpoint), None, settings.model.attn_implementation)
        put(dict(policy.model.named_parameters()), dict(saved.named_parameters()))
    else:
        put(adapters(policy.model), snapshot.adapters)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    for index, values in snapshot.optimiser["state"].items():
        snapshot.optimiser["state"][index] = {k: like(trained[index], v) for k, v in values.items()}
    policy.optimiser.load_state_dict(snapshot.optimiser)
    moving = learner.teacher.state()
    if moving is not None:
        if snapshot.teacher is None:
            raise UserError(
                f"resume: {checkpoint} holds no teacher weights, but teacher.weights={learner.teacher.weights}."
            )
        put(dict(moving.named_parameters()), snapshot.teacher)
    learner.method.load_state_dict(snapshot.state["method"])
    return snapshot.step, snapshot.state.get("pending")


def starting_point(settings: Settings, folder: RunFolder) -> Path | None:
    """The checkpoint to go on from, by ``resume``; files written after it are cut.

    Raises:
        UserError: under ``resume=must`` without a good checkpoint.
    """
    if settings.resume == "never":
        aside = folder.put_aside()
        if aside is not None:
            log.info("resume=never: the earlier run was moved to %s", aside)
        return None
    newest = checkpoints.newest_good(folder.checkpoints, log.warning)
    if newest is None and settings.resume == "must":
        raise UserError(
            f"resume=must: expected a checkpoint in {folder.checkpoints}, found no good one; set resume=auto."
        )
    checkpoints.tidy(folder.checkpoints, newest, settings.train.keep_last)
    step = int(newest.name.removeprefix("step_")) if newest else -1
    folder.record.cut_after(step)
    folder.samples.cut_after(step)
    return newest
