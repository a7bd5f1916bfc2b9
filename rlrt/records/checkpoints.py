"""Checkpoints: written atomically, and read only if their checksums match.

``step_N/`` is the model in the hub's format: transformers loads it and vLLM serves it (vLLM reads every safetensors file of
the folder). One process writes ``model.safetensors``; of several each writes ``model-K-of-N.safetensors``, listed in
``model.safetensors.index.json``. ``step_N/trainer/`` holds what only the trainer needs: ``shard-K-of-N.safetensors`` of every
rank K (``records.shards``; moments, teacher, adapters, and the float32 weights where the model's files are bfloat16) and
``state.json`` (position, method state). ``checksums.json`` covers all files. The folder is written as ``step_N.tmp``, synced to
disk and renamed when the parts of all ranks are there, so a kill at any moment leaves the earlier checkpoints unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlrt.errors import UserError
from rlrt.paths import CHECKSUMS, TRAINER, listed, step_of
from rlrt.records.files import json_object, made_folder, opened, read_json
from rlrt.records.shards import BLOCK, write_bytes

BEST = "best.json"
"""Beside the checkpoints: metric, value and step of the best one, under ``train.keep_best``."""


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    with opened(file) as handle:
        while block := handle.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin(folder: Path, step: int) -> Path:
    """Make the empty folder ``step_N.tmp`` in which a checkpoint is written, and return it.

    Args:
        folder: the run's ``checkpoints`` folder.
    """
    made_folder(folder)  # a run's folder that was removed is not made again
    work = folder / f"step_{step}.tmp"
    remove(work)
    work.mkdir()
    (work / TRAINER).mkdir()
    return work


def commit(work: Path, digests: Mapping[str, str], keep_last: int, best: int | None) -> Path:
    """Turn ``step_N.tmp``, whose files are all written and synced, into the checkpoint ``step_N``; then ``drop_old``.

    Args:
        digests: the SHA-256 of each file by its path within the checkpoint.
        best: step of the best checkpoint, which is kept, or None.
    """
    write_bytes(work / CHECKSUMS, [json.dumps(dict(sorted(digests.items())), indent=1).encode()])
    for path in (work / TRAINER, work):
        _sync(path)
    target = work.with_suffix("")
    remove(target)
    work.rename(target)
    _sync(target.parent)
    drop_old(target.parent, keep_last, best)
    return target


def damage(checkpoint: Path, part: int = 0, parts: int = 1) -> str | None:
    """Describe what is wrong with a checkpoint, or return None: every file must exist and match its checksum.

    Args:
        part, parts: look at every ``parts``-th file alone, from number ``part`` on: ranks share the work.
    """
    try:
        expected = json_object(checkpoint / CHECKSUMS)
    except UserError as error:
        return f"{CHECKSUMS} cannot be read ({error})"
    if not expected:
        return f"{CHECKSUMS} is missing, or lists no files"
    for name in sorted(expected)[part::parts]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{CHECKSUMS} names {name!r}, which lies outside"
        try:
            if _digest(checkpoint / name) != expected[name]:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except UserError as error:
            return str(error).rstrip(".")
    return None


def newest_good(
    found: Sequence[Path], warn: Callable[[str], None], wrong: Callable[[Path], str | None] = damage
) -> Path | None:
    """Return the newest undamaged checkpoint, or None; ``warn`` gets a sentence about each damaged one.

    Args:
        found: checkpoints, oldest first.
        wrong: says what is wrong with one, or None.
    """
    for checkpoint in reversed(found):
        why = wrong(checkpoint)
        if why is None:
            return checkpoint
        warn(f"checkpoint {checkpoint} is damaged ({why}); the run looks for an earlier one")
    return None


def tidy(folder: Path, good: Path | None, keep_last: int) -> None:
    """Remove checkpoints that a kill left half written or half removed; call this before a run resumes from ``good``.

    Damaged checkpoints newer than ``good`` are renamed to ``step_N.damaged``. If they counted among the newest
    ``keep_last``, they would displace good ones.
    """
    for torn in folder.glob("step_*.tmp"):
        remove(torn)
    checkpoints = listed(folder)
    newer = checkpoints[checkpoints.index(good) + 1 :] if good is not None else checkpoints
    for damaged in newer:
        aside = damaged.with_name(f"{damaged.name}.damaged")
        remove(aside)
        damaged.rename(aside)
    drop_old(folder, keep_last, best_step(folder))


def remove(path: Path) -> None:
    """Remove a folder, or what lies there under a folder's name; a link is removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def best_step(folder: Path) -> int | None:
    """Return the step of the best checkpoint by the note beside the checkpoints, or None."""
    step = read_json(folder / BEST).get("step")
    return step if isinstance(step, int) else None


def drop_old(folder: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the newest ``keep_last`` checkpoints (0: none) and the one of step ``best``."""
    if keep_last:
        for old in listed(folder)[:-keep_last]:
            if step_of(old) != best:
                remove(old)
