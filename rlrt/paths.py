"""Where things lie: config groups, studies, the embedded model, and what a model or data path leads to; nothing is loaded."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def _shipped(name: str) -> Path:
    """``conf`` or ``sweeps``: inside an installed wheel, or beside the package in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


CONFIG = _shipped("conf")
SWEEPS = _shipped("sweeps")
EMBEDDED = PACKAGE / "embedded"
"""The tiny Qwen3 and its tokenizer, inside the package; ``rlrt.pretrain`` made it."""
TRAINER = "trainer"
"""Folder of a checkpoint that only the trainer reads: the rest is the model."""
STATE = "state.json"
"""In that folder: where the run stands."""
CHECKSUMS = "checksums.json"
"""A checkpoint's list of its files."""


def resolve_path(path: str) -> str:
    """The folder or hub id behind ``model.path``; a run's folder means its newest checkpoint."""
    if path == "embedded":
        return str(EMBEDDED)
    saved = listed(Path(path).expanduser() / "checkpoints")
    return str(saved[-1]) if saved else path


def local_folder(path: str) -> Path | None:
    """The file or folder that a path means here, or None for a hub id."""
    found = Path(resolve_path(path)).expanduser()
    return found if found.exists() else None


def listed(folder: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return sorted((p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder, ``step_N``."""
    return int(checkpoint.name.removeprefix("step_"))


def saved_steps(run: Path) -> dict[int, Path]:
    """The finished checkpoints of a run's folder by their steps, oldest first."""
    return {step_of(p): p for p in listed(run / "checkpoints")}
