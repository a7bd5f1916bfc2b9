"""Disk space that a sweep's checkpoints need, checked before the sweep starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rlrt.errors import UserError, amount
from rlrt.paths import local_folder
from rlrt.records.files import free_bytes, nearest_existing, tensors_of
from rlrt.sweep.plan import Job

NUMBER_BYTES = 4
"""Bytes of a number that the trainer keeps: weights and the optimiser's moments are float32, whatever ``dtype`` computes."""
SERVED_BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a weight in the files that transformers and vLLM read, by ``train.save_dtype``."""
MOVING = ("ema", "snapshot")
"""With these values of ``teacher.weights`` a checkpoint also holds the teacher's weights."""


def parameters(folder: Path) -> int:
    """Count the parameters in a model's folder from the headers of its safetensors files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        total += sum(math.prod(part["shape"]) for name, part in tensors_of(file).items() if name != "__metadata__")
    return total


def one_checkpoint(job: Job) -> int | None:
    """Return the bytes of one checkpoint, or None if the job's model is not on this machine."""
    folder = local_folder(str(job.plain["model"]["path"]))
    if folder is None:
        return None
    adapted, weights = job.plain["model"].get("lora") is not None, parameters(folder)
    moves = job.plain["teacher"]["weights"] in MOVING and not adapted  # adapters are small
    moving = weights if moves else 0
    return numbers_bytes(weights, 0 if adapted else weights, moving, job.plain["train"]["save_dtype"], adapted)


def numbers_bytes(weights: int, trained: int, moving: int, save_dtype: str, adapted: bool) -> int:
    """Return the bytes of one checkpoint.

    Args:
        weights: numbers of the model.
        trained: numbers that AdamW has two moments of.
        moving: numbers of the teacher's weights, if they change.
        save_dtype: ``train.save_dtype``; unless only adapters are trained, the float32 weights are kept beside bfloat16.
        adapted: True if only adapters are trained.
    """
    beside = weights if save_dtype == "bfloat16" and not adapted else 0
    return SERVED_BYTES[save_dtype] * weights + NUMBER_BYTES * (beside + 2 * trained + moving)


def checkpoint_bytes(job: Job) -> int | None:
    """Return the bytes of the checkpoints that a job keeps, plus the one being written; None if the model is not local."""
    size = one_checkpoint(job)
    if size is None:
        return None
    steps, every, kept = (int(job.plain["train"][name]) for name in ("steps", "save_every", "keep_last"))  # "7" is 7
    saved = math.ceil(steps / (every or steps))
    count = saved if kept == 0 else min(saved, kept + 1)
    return size * count


def written(folder: Path) -> int:
    """Return the bytes of the checkpoints that a job has already written."""
    return sum(p.stat().st_size for p in (folder / "checkpoints").rglob("*") if p.is_file())


def still_needed(jobs: Sequence[Job]) -> int:
    """Return the bytes of the checkpoints that jobs have yet to write; a job whose model is not local counts as 0."""
    return sum(max(0, (checkpoint_bytes(job) or 0) - written(job.folder)) for job in jobs)


def check_disk(sweep: Path, jobs: Sequence[Job], say: Callable[[str], object]) -> None:
    """Print how much space the checkpoints of a sweep need, and refuse to start if the disk has less.

    Raises:
        UserError: naming the keys that reduce the need.
    """
    sizes = {str(job.plain["model"]["path"]): checkpoint_bytes(job) for job in jobs}
    unknown = [path for path, size in sizes.items() if size is None]
    if unknown:
        say(f"disk: {', '.join(unknown)} is not on this machine, so the size of its checkpoints is not known")
    needed, free = still_needed(jobs), free_bytes(sweep)
    if needed > free:
        raise UserError(
            f"hydra.sweep.dir: the checkpoints of {len(jobs)} jobs need about {amount(needed)}, and "
            f"{nearest_existing(sweep)} has {amount(free)} free; lower train.keep_last, or give a larger disk as "
            "hydra.sweep.dir=FOLDER."
        )
    if needed > 1e9:
        say(f"disk: the checkpoints of {len(jobs)} jobs need about {amount(needed)} of {amount(free)} free")
