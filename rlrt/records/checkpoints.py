"""Checkpoints: written atomically, and read only if their checksums match.

``step_N/`` is the model in the hub's format: transformers loads it and vLLM serves it (vLLM reads every safetensors file of
the folder). ``step_N/trainer/`` holds what only the trainer needs: ``optimiser.safetensors``, ``teacher.safetensors`` if the
teacher's weights change, ``adapters.safetensors`` if adapters are trained, and ``state.json`` (position, method state).
``checksums.json`` covers all files. The folder is written as ``step_N.tmp``, synced to disk and renamed, so a kill at any
moment leaves the earlier checkpoints unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlrt.paths import CHECKSUMS, STATE, TRAINER, listed, step_of
from rlrt.records.files import read_json

BEST = "best.json"
"""Beside the checkpoints: metric, value and step of the best one, under ``train.keep_best``."""
PARTS = ("teacher", "adapters")
"""Sets of named weights that a snapshot may hold besides the model's weights."""


@dataclass
class Snapshot:
    """The part of a checkpoint that is not the model.

    Attributes:
        step: number of updates done.
        optimiser: the optimiser's ``state_dict``.
        teacher: named weights of a teacher whose weights change, or None.
        adapters: named weights of low-rank adapters, or None; the model's files have them merged in.
        state: JSON values (method state and the like).
    """

    step: int
    optimiser: dict[str, Any]
    teacher: dict[str, torch.Tensor] | None
    adapters: dict[str, torch.Tensor] | None
    state: dict[str, Any]


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(folder: Path, snapshot: Snapshot, save_model: Callable[[Path], None], keep_last: int) -> Path:
    """Write ``folder/step_N`` atomically, then remove all but the newest ``keep_last`` checkpoints (0: keep all).

    Args:
        folder: the run's ``checkpoints`` folder.
        snapshot: the trainer's part of the checkpoint.
        save_model: writes the model's files into the folder that it gets.
        keep_last: how many checkpoints to keep.
    """
    target = folder / f"step_{snapshot.step}"
    work = folder / f"step_{snapshot.step}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    inner = work / TRAINER
    inner.mkdir(parents=True)
    save_model(work)
    tensors, rest = flatten_optimiser(snapshot.optimiser)
    save_file(tensors, inner / "optimiser.safetensors")
    for name in PARTS:
        weights = getattr(snapshot, name)
        if weights is not None:
            copies = {k: v.detach().clone().contiguous() for k, v in weights.items()}
            save_file(copies, inner / f"{name}.safetensors")
    state = {"step": snapshot.step, "optimiser": rest, **snapshot.state}
    (inner / STATE).write_text(json.dumps(state, indent=1))
    files = plain_files(work)
    for file in files:
        _sync(file)
    (work / CHECKSUMS).write_text(json.dumps({str(p.relative_to(work)): _digest(p) for p in files}, indent=1))
    for path in (work / CHECKSUMS, inner, work):
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    work.rename(target)
    _sync(folder)
    drop_old(folder, keep_last)
    return target


def plain_files(folder: Path) -> list[Path]:
    """Give all files below a folder the permissions that the umask gives to a new file, and return them sorted.

    safetensors makes its files readable by their owner alone, whatever the umask. The permissions of folders do not change:
    only root can enter a folder without its x bit.
    """
    probe = folder / ".rights"
    probe.touch()
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for file in files:
        file.chmod(rights)
    return files


def damage(checkpoint: Path) -> str | None:
    """Describe what is wrong with a checkpoint, or return None: every file must exist and match its checksum."""
    try:
        expected = json.loads((checkpoint / CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} cannot be read ({error})"
    for name, digest in expected.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} is not what was written"
    return None


def newest_good(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest undamaged checkpoint, or None; ``warn`` gets a sentence about each damaged one."""
    for checkpoint in reversed(listed(folder)):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        warn(f"checkpoint {checkpoint} is damaged ({wrong}); the run looks for an earlier one")
    return None


def tidy(folder: Path, good: Path | None, keep_last: int) -> None:
    """Remove checkpoints that a kill left half written or half removed; call this before a run resumes from ``good``.

    Damaged checkpoints newer than ``good`` are renamed to ``step_N.damaged``. If they counted among the newest
    ``keep_last``, they would displace good ones.
    """
    for torn in folder.glob("step_*.tmp"):
        shutil.rmtree(torn)
    checkpoints = listed(folder)
    newer = checkpoints[checkpoints.index(good) + 1 :] if good is not None else checkpoints
    for damaged in newer:
        aside = damaged.with_name(f"{damaged.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)
    drop_old(folder, keep_last)


def drop_old(folder: Path, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` checkpoints (0: none) and the best one, if a run keeps it."""
    best = read_json(folder / BEST).get("step")
    if keep_last:
        for old in listed(folder)[:-keep_last]:
            if step_of(old) != best:
                shutil.rmtree(old)


def read(checkpoint: Path) -> Snapshot:
    """Return the snapshot that ``save`` wrote."""
    inner = checkpoint / TRAINER
    state = json.loads((inner / STATE).read_text())
    optimiser = unflatten_optimiser(load_file(inner / "optimiser.safetensors"), state.pop("optimiser"))
    files = {name: inner / f"{name}.safetensors" for name in PARTS}
    parts = {name: load_file(file) if file.is_file() else None for name, file in files.items()}
    return Snapshot(state.pop("step"), optimiser, state=state, **parts)


def flatten_optimiser(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimiser's ``state_dict`` into named tensors and JSON values."""
    tensors: dict[str, torch.Tensor] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"optimiser state {name} is a {type(value).__name__}, expected a tensor")
            tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
    return tensors, {"param_groups": state["param_groups"]}


def unflatten_optimiser(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """Rebuild an optimiser's ``state_dict`` (the inverse of ``flatten_optimiser``)."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, tensor in tensors.items():
        index, name = full.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}  # JSON has no tuples
        for group in rest["param_groups"]
    ]
    return {"state": state, "param_groups": groups}
