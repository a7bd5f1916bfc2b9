"""From a run's state to a checkpoint, and back to where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rlrt.config.schema import Settings
from rlrt.distributed.sharding import like, put, whole
from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.model.load import load
from rlrt.model.lora import adapters, named_weights
from rlrt.paths import CHECKSUMS, resolve_path, step_of
from rlrt.records import checkpoints
from rlrt.records.files import read_json
from rlrt.records.folder import RunFolder
from rlrt.records.identity import counted, identity
from rlrt.records.secrets import redacted
from rlrt.records.stored_config import stored_config
from rlrt.training.learner import Learner

log = logging.getLogger("rlrt")
SHOWN = 6
"""Differences of two configs that a message names."""
NOTHING = "nothing"
"""In place of a value where a config has no such key."""


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


def refuse_another_run(settings: Settings, folder: RunFolder) -> None:
    """Refuse to go on, under today's identity, with another run that lies in a folder that was typed.

    Raises:
        UserError: naming what differs; under ``resume=never``, which puts a run aside, only for what is no run's folder.
    """
    there, now = folder.manifest().get("identity"), identity(settings.plain)
    refuse_no_runs_folder(folder.path, now)
    if settings.resume == "never" or there == now:
        return
    if there is None and folder.summary().get("state") not in ("finished", "pruned") and not folder.holds_more():
        return  # a life that ended before it wrote who it was left nothing to go on with
    if there is None:
        reason = "its manifest.json cannot be read"
    else:
        try:
            different = differences(stored_config(folder.path), redacted(settings.plain))
        except UserError:
            different = []
        shown = "; ".join(different[:SHOWN]) + (
            f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        )
        reason = shown or "the code, a library, or the content of the model or the data has changed since"
    raise UserError(
        f"hydra.run.dir: {folder.path} holds another run (identity {there}, this one is {now}): {reason}; give another "
        "folder, or resume=never, which puts that run aside."
    )


def refuse_no_runs_folder(path: Path, identity: str) -> None:
    """Refuse to run in a sweep's folder, in the folder of another job of a sweep, in a checkpoint, and among evaluations.

    Raises:
        UserError: saying what is there.
    """
    planned = read_json(path / "job.json").get("identity", identity)
    kinds = {"sweep.json": "a sweep", CHECKSUMS: "a checkpoint", "problems.jsonl": "an evaluation"}
    what = next((kind for name, kind in kinds.items() if (path / name).exists()), None)
    if planned != identity:
        what = f"a job of a sweep with another identity ({planned}, this one is {identity})"
    if what is not None:
        raise UserError(f"hydra.run.dir: {path} is the folder of {what}; give another folder.")


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """``key is A there and B here`` for every value of two configs that differs, of what makes a run's identity."""
    before, after = (leaves(counted(plain)) for plain in (there, here))
    keys = [k for k in {**before, **after} if before.get(k, NOTHING) != after.get(k, NOTHING)]
    return [f"{k} is {short(before.get(k, NOTHING))} there and {short(after.get(k, NOTHING))} here" for k in keys]


def short(value: Any) -> str:
    """A value of a config on a part of a line."""
    text = NOTHING if value == NOTHING else json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


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
    step = step_of(newest) if newest else -1
    folder.record.cut_after(step)
    folder.samples.cut_after(step)
    return newest
