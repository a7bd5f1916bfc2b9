"""What a user typed wrong, as one sentence and exit code 2: rlrt's own refusals, and Hydra's in plain words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.compose import GROUPS, choice, composed_keys, config_dirs_of, hydra_keys
from rlrt.config.options import SECTIONS, elsewhere
from rlrt.errors import UserError, nearest
from rlrt.paths import CONFIG
from rlrt.records.secrets import masked

HYDRAS = ("hydra", "omegaconf", "antlr4", "yaml")
"""Packages that compose a config: an error that begins in one of them is about what was typed."""


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Hydra's complaint as one sentence with the nearest valid name."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        name = match[1]
        others = of_another_option(name, arguments)
        if others:
            return f"{name}: {others}"
        known = known_names(arguments)
        if name in known:
            return (
                f"{name}: it holds keys of its own; add one as +{name}.KEY=VALUE, or replace it whole with ++{name}=..."
            )
        return f"{name}: there is no such key.{nearest(name, known)}"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values make a sweep; add -m, or write a list as [a,b]."
    if match := re.search(r"Could not find '([^']+?)/([^'/]+)'", text):
        whole = f"{match[1]}/{match[2]}"
        group = whole.split("/")[0] if whole.split("/")[0] in GROUPS else match[1]  # experiment=paper/x is one choice
        name = whole.removeprefix(f"{group}/")
        options = [o for o in re.findall(r"^\t(\S+)$", text, re.MULTILINE) if "/" not in name]
        nested = [str(p.relative_to(CONFIG / group).with_suffix("")) for p in (CONFIG / group).rglob("[!_]*.yaml")]
        known = sorted({*nested, *(o for o in options if o[0] != "_")})
        return f"{group}={name}: there is no such {group}.{nearest(name, known)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    given = next((a for a in arguments if "${" in a), "")
    if "nterpolation" in text and given:
        return f"{given.split('=', 1)[0].lstrip('+~')}: the value of {given!r} cannot be resolved ({lines[0]})."
    typed = next((a for a in arguments if a in text), "")
    said = " ".join(line for line in lines[:2] if not line.endswith(":")) or type(error).__name__
    if isinstance(error, RecursionError):
        said = "these choices lead to themselves: a file of a config group names its own group in its defaults list"
    return f"{typed}: {said}" if typed and not said.startswith(typed) else said


def of_another_option(name: str, arguments: Sequence[str]) -> str:
    """What to say of a key that the chosen method, data set or engine lacks and another one has; empty for other keys."""
    group, _, key = name.partition(".")
    if group not in SECTIONS:
        return ""
    folders = [CONFIG, *map(Path, config_dirs_of(arguments))]
    return elsewhere(group, key, choice(group, arguments, folders).split(",")[0], folders)


def known_names(arguments: Sequence[str]) -> list[str]:
    """Every name that could have been meant: keys, config groups, and the launcher's and sweeper's keys."""
    from hydra.errors import HydraException

    try:
        keys = composed_keys(arguments)
    except HydraException:
        keys = composed_keys([])
    return [*keys, *GROUPS, *hydra_keys(arguments)]


def guarded(action: Callable[[], Any], arguments: Sequence[str] = ()) -> int:
    """Run ``action``; errors that a user can mend become one sentence on standard error and an exit code.

    Args:
        arguments: what was typed, for Hydra's complaints.

    Returns:
        0; 2 for what rlrt or Hydra refuses.
    """
    try:
        action()
    except UserError as error:
        print(f"error: {masked(str(error))}", file=sys.stderr)
        return 2
    except Exception as error:
        refused = unwritable(error, arguments) or (explain(error, arguments) if is_hydras(error) else "")
        if not refused:
            raise
        print(f"error: {masked(refused)}", file=sys.stderr)
        return 2
    return 0


def unwritable(error: Exception, arguments: Sequence[str]) -> str:
    """What to say of a folder for runs or sweeps that cannot be made; empty for all other errors."""
    from hydra.errors import HydraException

    if not isinstance(error, OSError) or isinstance(error, HydraException) or error.filename is None:
        return ""
    if "outputs" not in str(error.filename) and not any("dir=" in a for a in arguments):
        return ""
    key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
    return f"{key}: {error.filename} cannot be written ({error.strerror}); give a folder that can, as {key}=FOLDER."


def is_hydras(error: Exception) -> bool:
    """Whether Hydra or OmegaConf refused what was typed, be it by a plain ValueError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    modules, frame = [], error.__traceback__
    while frame is not None:
        modules.append(str(frame.tb_frame.f_globals.get("__name__")).split(".")[0])
        frame = frame.tb_next
    nearest_known = next((m for m in reversed(modules) if m in ("rlrt", *HYDRAS)), "")
    return isinstance(error, (HydraException, OmegaConfBaseException)) or nearest_known in HYDRAS
