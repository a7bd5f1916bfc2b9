"""Where a run goes on, and what is refused in the folder of a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from rlrt.config.schema import Settings
from rlrt.distributed.world import ALONE, World
from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.paths import CHECKSUMS, listed, local_folder, step_of
from rlrt.records import checkpoints
from rlrt.records.files import read_json
from rlrt.records.folder import BEGUN, RunFolder
from rlrt.records.identity import counted, identity
from rlrt.records.killed import why_gone
from rlrt.records.secrets import redacted
from rlrt.records.stored_config import stored_config

log = logging.getLogger("rlrt")
SHOWN = 6
"""Differences of two configs that a message names."""
NOTHING = "nothing"
"""In place of a value where a config has no such key."""


def check_saved(path: str, world: World = ALONE) -> None:
    """Refuse a checkpoint as ``model.path`` that is not as it was written; ranks share the look at its files.

    Raises:
        UserError: naming the file.
    """
    folder = local_folder(path)
    saved = folder is not None and (folder / CHECKSUMS).is_file()
    wrong = joint_damage(folder, world) if folder is not None and saved else None
    if wrong is not None:
        raise UserError(f"model.path: the checkpoint {folder} is damaged ({wrong}); give another one's folder.")


def joint_damage(checkpoint: Path, world: World) -> str | None:
    """Say what is wrong with a checkpoint, or return None: each rank looks at a share of its files, and all hear of it."""
    wrong = world.gather([checkpoints.damage(checkpoint, world.rank, world.size)])
    return next((sentence for sentence in wrong if sentence), None)


def refuse_another_run(settings: Settings, folder: RunFolder) -> None:
    """Refuse to go on, under today's identity, with another run that lies in a folder that was typed.

    Raises:
        UserError: naming what differs; under ``resume=never``, which puts a run aside, only for what is no run's folder.
    """
    stored, now = folder.manifest().get("identity"), identity(settings.plain)
    refuse_no_runs_folder(folder.path, now)
    if settings.resume == "never" or stored == now:
        return
    if stored is None and folder.summary().get("state") not in ("finished", "pruned") and not folder.holds_results():
        return  # a run that was killed before it wrote its identity left nothing to go on with
    if stored is None:
        reason = "its manifest.json cannot be read"
    else:
        try:
            different = differences(stored_config(folder.path), redacted(settings.plain))
        except UserError:
            different = []
        listed = "; ".join(different[:SHOWN]) + (
            f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        )
        reason = listed or "the code, a library, or the content of the model or the data has changed since"
    raise UserError(
        f"hydra.run.dir: {folder.path} holds another run (identity {stored}, this one is {now}): {reason}; give another "
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


def differences(stored: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """``key is A there and B here`` for every value that differs between two configs and counts for a run's identity."""
    before, after = (leaves(counted(plain)) for plain in (stored, current))
    keys = [k for k in {**before, **after} if before.get(k, NOTHING) != after.get(k, NOTHING)]
    return [f"{k} is {short(before.get(k, NOTHING))} there and {short(after.get(k, NOTHING))} here" for k in keys]


def short(value: Any) -> str:
    """A value of a config on a part of a line."""
    text = NOTHING if value == NOTHING else json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def starting_point(settings: Settings, folder: RunFolder, world: World = ALONE) -> Path | None:
    """The checkpoint to go on from, by ``resume``; files written after it are cut. All ranks call it together.

    Raises:
        UserError: under ``resume=must`` without a good checkpoint.
    """
    if settings.resume == "never":
        aside = world.on_main(folder.put_aside)
        if aside is not None and world.main:
            log.info("resume=never: the earlier run was moved to %s", aside)
        return None
    found = world.on_main(lambda: listed(folder.checkpoints))
    warn = log.warning if world.main else log.debug
    newest = checkpoints.newest_good(found, warn, lambda checkpoint: joint_damage(checkpoint, world))
    if newest is None and settings.resume == "must":
        raise UserError(
            f"resume=must: expected a checkpoint in {folder.checkpoints}, found no good one; set resume=auto."
        )
    world.on_main(lambda: cut_after(settings, folder, newest))
    return newest


def cut_after(settings: Settings, folder: RunFolder, newest: Path | None) -> None:
    """Remove what a run left after the checkpoint that it goes on from."""
    checkpoints.tidy(folder.checkpoints, newest, settings.train.keep_last)
    step = step_of(newest) if newest else -1
    folder.record.cut_after(step)
    folder.samples.cut_after(step)


def warn_of_earlier_life(folder: RunFolder) -> None:
    """Log how an earlier life of the run ended that did not say so itself: whoever wrote that it runs is gone, since this
    process has the lease."""
    earlier = folder.summary()
    if earlier.get("state") == "running" and earlier.get(BEGUN):
        log.warning("this run's earlier life did not end by itself: %s", why_gone(earlier))
