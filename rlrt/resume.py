"""From a run's state to a checkpoint, and back to where it was."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from rlrt import checkpoints
from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.folder import RunFolder
from rlrt.learner import Learner
from rlrt.lora import adapters
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


def save_checkpoint(learner: Learner, folder: Path, step: int, keep_last: int) -> Path:
    """Everything the run needs to go on to the bit."""
    moving = learner.teacher.state()
    snapshot = checkpoints.Snapshot(
        step=step,
        optimiser=learner.policy.optimiser.state_dict(),
        teacher=None if moving is None else dict(moving.named_parameters()),
        adapters=adapters(learner.policy.model) or None,
        state={"method": learner.method.state_dict()},
    )
    return checkpoints.save(folder, snapshot, learner.policy.save, keep_last)


def restore_checkpoint(learner: Learner, checkpoint: Path, settings: Settings) -> int:
    """Take over a checkpoint; returns its step."""
    snapshot = checkpoints.read(checkpoint)
    policy = learner.policy
    if snapshot.adapters is None:
        saved, _ = load(str(checkpoint), None, settings.model.attn_implementation)
        policy.model.load_state_dict(saved.state_dict())
    else:
        take_over(adapters(policy.model), snapshot.adapters)
    policy.optimiser.load_state_dict(snapshot.optimiser)
    moving = learner.teacher.state()
    if moving is not None:
        if snapshot.teacher is None:
            raise UserError(
                f"resume: {checkpoint} holds no teacher weights, but teacher.weights={learner.teacher.weights}."
            )
        take_over(dict(moving.named_parameters()), snapshot.teacher)
    learner.method.load_state_dict(snapshot.state["method"])
    return snapshot.step


@torch.no_grad()
def take_over(mine: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    """Copy saved weights into a model's, name by name."""
    for name, weights in mine.items():
        weights.copy_(saved[name])


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
