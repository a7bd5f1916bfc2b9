"""Paths of config groups, studies, the embedded model and checkpoints, and resolution of model paths; nothing is loaded."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parent


def _shipped(name: str) -> Path:
    """Return the path of ``conf`` or ``sweeps``: inside an installed wheel, or beside the package in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


CONFIG = _shipped("conf")
SWEEPS = _shipped("sweeps")
EMBEDDED = PACKAGE / "embedded"
"""The tiny Qwen3 and its tokenizer, inside the package; ``rlrt.pretrain`` trained it."""
TESTBED = PACKAGE / "testbed"
"""Folders of the testbed's models, inside the package; ``rlrt.pretrain`` trained them."""
TESTBED_KINDS = ("base", "instruct", "thinking", "levels_base", "levels_instruct", "levels_thinking")
SHIPPED = {"embedded": EMBEDDED} | {f"testbed/{kind}": TESTBED / kind for kind in TESTBED_KINDS}
"""The models inside the package, by what ``model.path`` calls them."""
SMOLLM2 = "outputs/models/smollm2_135m"
"""Where ``python -m rlrt.smollm2`` puts its model, and where ``model=smollm2_135m`` looks for it."""
TRAINER = "trainer"
"""Subfolder of a checkpoint that only the trainer reads; all other files are the model."""
STATE = "state.json"
"""File in the trainer's subfolder with the run's position and the method's state."""
CHECKSUMS = "checksums.json"
"""File of a checkpoint with the SHA-256 of every other file."""


def resolve_path(path: str) -> str:
    """Return the folder or hub id that ``model.path`` refers to; a run's folder refers to its newest checkpoint."""
    if path in SHIPPED:
        return str(SHIPPED[path])
    folder = existing(path)
    saved = listed(folder / "checkpoints") if folder is not None else []
    if saved:
        return str(saved[-1])
    return str(folder) if folder is not None and path.startswith("~") else path


def local_folder(path: str) -> Path | None:
    """Return the existing file or folder that a path refers to on this machine, or None (a hub id, for example)."""
    return existing(resolve_path(path))


def existing(path: str) -> Path | None:
    """Return a path, ``~`` expanded, if it exists; None also for what no file system holds, such as a name that is too long."""
    try:
        expanded = Path(path).expanduser()
        return expanded if expanded.exists() else None
    except (OSError, RuntimeError, ValueError):  # RuntimeError: there is no such user
        return None


def listed(folder: Path) -> list[Path]:
    """List the complete checkpoints in a ``checkpoints`` folder, oldest first; what is no folder is none."""
    return sorted((p for p in folder.glob("step_*") if re.fullmatch("step_[0-9]+", p.name) and p.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint's folder, ``step_N``."""
    return int(checkpoint.name.removeprefix("step_"))


def saved_steps(run: Path) -> dict[int, Path]:
    """Return the complete checkpoints of a run's folder by step, oldest first."""
    return {step_of(p): p for p in listed(run / "checkpoints")}
