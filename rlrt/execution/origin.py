"""Going on with a finished run for more steps: ``+from=RUN train.steps=N`` is a run of its own that begins where RUN ended."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrt.config.schema import Settings
from rlrt.errors import UserError
from rlrt.paths import listed, step_of
from rlrt.records import checkpoints
from rlrt.records.files import is_file, mapping
from rlrt.records.folder import RunFolder
from rlrt.records.identity import counted, identity
from rlrt.records.secrets import redacted
from rlrt.records.stored_config import stored_config

log = logging.getLogger("rlrt")


def origin_point(settings: Settings, folder: RunFolder) -> Path | None:
    """Return the checkpoint of another run from which a new run goes on, and take over that run's records.

    That is the last checkpoint of ``settings.origin`` where the two runs differ in nothing but more ``train.steps``, and the
    steps done are those that the longer run would have done: same code, libraries, model and data, and a constant learning
    rate. Otherwise the run starts at step 0; the log says why where only the number of steps was typed.
    """
    if settings.origin is None or settings.resume == "never":
        return None
    origin = RunFolder(Path(settings.origin))
    try:
        steps = with_more_steps(settings.plain, stored_config(origin.path))
    except UserError as error:
        log.warning("origin: %s The run starts at step 0.", error)
        return None
    if steps is None:
        return None
    newest = checkpoints.newest_good(listed(origin.checkpoints), log.warning, checkpoints.damage)
    reason = why_not(settings, origin, steps, newest)
    if reason is not None or newest is None:
        log.warning("origin: %s is not gone on with, since %s; the run starts at step 0", origin.path, reason)
        return None
    for name in ("metrics.jsonl", "samples.jsonl"):
        if is_file(origin.path / name):
            shutil.copyfile(origin.path / name, folder.path / name)
    folder.record.cut_after(steps)
    folder.samples.cut_after(steps)
    folder.write_manifest(origin={"run": str(origin.path), "identity": origin.manifest()["identity"], "step": steps})
    return newest


def with_more_steps(plain: Mapping[str, Any], stored: Mapping[str, Any]) -> int | None:
    """Return the stored run's number of steps if the new config is the same one with more; else None.

    Args:
        plain: the new run's config.
        stored: the other's, as its folder has it, without secrets.
    """
    steps = mapping(stored.get("train")).get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or plain["train"]["steps"] <= steps:
        return None
    return steps if counted(redacted(shorter(plain, steps))) == counted(stored) else None


def shorter(plain: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return a config with another number of steps."""
    changed = copy.deepcopy(dict(plain))
    changed["train"]["steps"] = steps
    return changed


def why_not(settings: Settings, origin: RunFolder, steps: int, newest: Path | None) -> str | None:
    """Return why a run cannot be gone on with; None if it can."""
    if origin.summary().get("state") != "finished":
        return "it has not finished"
    if settings.train.lr_schedule != "constant":
        return f"its learning rate fell towards its end (train.lr_schedule={settings.train.lr_schedule})"
    if origin.manifest().get("identity") != identity(shorter(settings.plain, steps)):
        return "the code, a library, or the content of the model or the data has changed"
    if newest is None or step_of(newest) != steps:
        return f"it has no good checkpoint of step {steps}"
    return None
