"""What enters an sbatch script, checked: SLURM reads it line by line, and replaces signs in paths."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, shown

OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""Pattern of an sbatch option's name; submitit writes _ as -."""
IDS = ("%j", "%t", "%A", "%a")
"""Signs that submitit replaces by ids in every path."""


def controls(text: str, allowed: str = "") -> list[str]:
    """Return the control characters and lone surrogates of a text, except the allowed ones."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in allowed]


def refuse_controls(name: str, text: str, allowed: str = "") -> None:
    """Refuse control characters: a line break would begin a line of its own in the script.

    Raises:
        UserError: naming the key.
    """
    if found := controls(text, allowed):
        raise UserError(
            f"{name}: expected a text on one line without control characters, got {shown(text)} with {found[0]!r}."
        )


def check_texts(texts: Mapping[str, str | None], setup: Sequence[str]) -> None:
    """Refuse control characters in the launcher's texts.

    Args:
        texts: key of ``hydra.launcher`` to its text.
        setup: shell lines, in which a tab is allowed.

    Raises:
        UserError: naming the key.
    """
    for name, text in texts.items():
        if text is not None:
            refuse_controls(f"hydra.launcher.{name}", text)
    for line in setup:
        refuse_controls("hydra.launcher.setup", line, allowed="\t")


def options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``additional_parameters`` without the options that are switched off by null or false.

    Raises:
        UserError: for a name or value that sbatch cannot have.
    """
    where = "hydra.launcher.additional_parameters"
    for name, value in values.items():
        if not OPTION.fullmatch(str(name)):
            raise UserError(f"{where}: expected names of sbatch options, such as gres or mail_type, got {shown(name)}.")
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise UserError(f"{where}.{name}: expected a text, a number, true or false, got {shown(value)}.")
        refuse_controls(f"{where}.{name}", str(value))
    return {str(name): value for name, value in values.items() if value is not None and value is not False}


def check_folder(folder: Path, on_slurm: bool) -> None:
    """Refuse a sweep's folder in whose path SLURM or submitit would replace signs: logs would lie in another folder.

    Raises:
        UserError: with the sign.
    """
    path = str(folder.absolute())
    refuse_controls("hydra.sweep.dir", path)
    if on_slurm and "%" in path:
        raise UserError(
            f"hydra.sweep.dir: expected a path without %, which SLURM replaces in the paths of logs, got {shown(path)}; give "
            "another folder as hydra.sweep.dir=FOLDER."
        )
    sign = next((sign for sign in IDS if sign in path), None)
    if sign:
        raise UserError(
            f"hydra.sweep.dir: expected a path without {sign}, which submitit replaces by a job's id, got {shown(path)}; give "
            "another folder as hydra.sweep.dir=FOLDER."
        )
