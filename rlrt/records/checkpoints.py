"""Checkpoints: written whole or not at all, read only if undamaged.

``step_N/`` is the model in the hub's format: transformers loads it, vLLM serves it (which reads every safetensors file of the
folder). What only the trainer needs is below ``step_N/trainer/``: ``optimiser.safetensors``, ``teacher.safetensors`` where the
teacher's weights move, ``adapters.safetensors`` where adapters are trained, ``state.json`` (position, method state).
``checksums.json`` covers all. The folder is written as ``step_N.tmp``, synced to disk and renamed, so a kill at any moment
leaves the earlier checkpoints as they were.
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

from rlrt.paths import CHECKSUMS, STATE, TRAINER, listed

PARTS = ("teacher", "adapters")
"""Named weights that a snapshot may hold besides the model's."""


@dataclass
class Snapshot:
    """What a checkpoint holds besides the model's own folder.

    Attributes:
        step: updates done.
        optimiser: the optimiser's ``state_dict``.
        teacher: named weights of a teacher that moves, or None.
        adapters: named weights of low-rank adapters, or None; the model's folder has them merged in.
        state: numbers and names that fit JSON (method state and the like).
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
    """Write ``folder/step_N`` atomically, then drop all but the newest ``keep_last`` (0: keep all).

    Args:
        folder: the run's ``checkpoints`` folder.
        snapshot: what to keep.
        save_model: writes the model's files into the folder it is given.
        keep_last: how many checkpoints stay.
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
    """All files below a folder, sorted, with the rights that the umask gives to a new file.

    safetensors writes its files for their owner alone, whatever the umask. Folders keep their rights: only root can enter a
    folder that has lost its x bit.
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
    """What is wrong with a checkpoint, or None: every file must be there with the digest it was written with."""
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
    """The newest undamaged checkpoint; damaged ones are named through ``warn`` and passed over."""
    for checkpoint in reversed(listed(folder)):
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        warn(f"checkpoint {checkpoint} is damaged ({wrong}) and was skipped for the one before it")
    return None


def tidy(folder: Path, good: Path | None, keep_last: int) -> None:
    """Before a run goes on from ``good``: remove what a kill left half written or half removed.

    Damaged checkpoints newer than ``good`` are renamed to ``step_N.damaged``: counted among the newest ``keep_last``, they
    would push good ones out.
    """
    for torn in folder.glob("step_*.tmp"):
        shutil.rmtree(torn)
    there = listed(folder)
    newer = there[there.index(good) + 1 :] if good is not None else there
    for damaged in newer:
        aside = damaged.with_name(f"{damaged.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)
    drop_old(folder, keep_last)


def drop_old(folder: Path, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` checkpoints (0: none)."""
    if keep_last:
        for old in listed(folder)[:-keep_last]:
            shutil.rmtree(old)


def read(checkpoint: Path) -> Snapshot:
    """The parts that ``save`` wrote, the model apart."""
    inner = checkpoint / TRAINER
    state = json.loads((inner / STATE).read_text())
    optimiser = unflatten_optimiser(load_file(inner / "optimiser.safetensors"), state.pop("optimiser"))
    files = {name: inner / f"{name}.safetensors" for name in PARTS}
    parts = {name: load_file(file) if file.is_file() else None for name, file in files.items()}
    return Snapshot(state.pop("step"), optimiser, state=state, **parts)


def flatten_optimiser(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's ``state_dict`` as named tensors, and the rest as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"optimiser state {name} is a {type(value).__name__}, expected a tensor")
            tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
    return tensors, {"param_groups": state["param_groups"]}


def unflatten_optimiser(tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of ``flatten_optimiser``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, tensor in tensors.items():
        index, name = full.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}  # JSON has no tuples
        for group in rest["param_groups"]
    ]
    return {"state": state, "param_groups": groups}
