"""Whether the disk holds what a sweep will save, asked before it starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rlrt.errors import UserError
from rlrt.paths import local_folder
from rlrt.records.files import free_bytes, nearest_existing
from rlrt.reporting.terminal import gigabytes
from rlrt.sweep.plan import Job

NUMBER_BYTES = 4
"""Weights and the optimiser's moments are float32, whatever ``dtype`` computes in."""
MOVING = ("ema", "snapshot")
"""Teachers whose weights are in the checkpoint too."""


def parameters(folder: Path) -> int:
    """Weights in a model's folder, from the headers of its safetensors files alone."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        total += sum(math.prod(part["shape"]) for name, part in header.items() if name != "__metadata__")
    return total


def one_checkpoint(job: Job) -> int | None:
    """Bytes of one checkpoint; None where the job's model is not here."""
    folder = local_folder(str(job.plain["model"]["path"]))
    if folder is None:
        return None
    adapted = job.plain["model"].get("lora") is not None
    trained = 1 if adapted else 3  # weights and AdamW's two moments; adapters are next to nothing
    return parameters(folder) * NUMBER_BYTES * (trained + (job.plain["teacher"]["weights"] in MOVING))


def checkpoint_bytes(job: Job) -> int | None:
    """Bytes of the checkpoints that a job keeps, the one being written included; None where its model is not here."""
    size = one_checkpoint(job)
    if size is None:
        return None
    train = job.plain["train"]
    every = train["save_every"] or train["steps"]
    saved = math.ceil(train["steps"] / every)
    kept = saved if train["keep_last"] == 0 else min(saved, train["keep_last"] + 1)
    return size * kept


def written(folder: Path) -> int:
    """Bytes of the checkpoints that a job has already."""
    return sum(p.stat().st_size for p in (folder / "checkpoints").rglob("*") if p.is_file())


def still_needed(jobs: Sequence[Job]) -> int:
    """Bytes of the checkpoints that jobs have yet to write; a model that is not here counts as nothing."""
    return sum(max(0, (checkpoint_bytes(job) or 0) - written(job.folder)) for job in jobs)


def check_disk(sweep: Path, jobs: Sequence[Job], say: Callable[[str], object]) -> None:
    """Say how much the checkpoints of a sweep will take, and refuse to start where there is not that much.

    Raises:
        UserError: naming the keys that save less.
    """
    sizes = {str(job.plain["model"]["path"]): checkpoint_bytes(job) for job in jobs}
    unknown = [path for path, size in sizes.items() if size is None]
    if unknown:
        say(f"disk: {', '.join(unknown)} is not on this machine, so what its checkpoints take is not known")
    needed, free = still_needed(jobs), free_bytes(sweep)
    if needed > free:
        raise UserError(
            f"hydra.sweep.dir: the checkpoints of {len(jobs)} jobs need about {gigabytes(needed)}, and "
            f"{nearest_existing(sweep)} has {gigabytes(free)} free; lower train.keep_last, or give a larger disk as "
            "hydra.sweep.dir=FOLDER."
        )
    if needed > 1e9:
        say(f"disk: the checkpoints of {len(jobs)} jobs need about {gigabytes(needed)} of {gigabytes(free)} free")
