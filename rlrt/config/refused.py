"""Report a user's error as one sentence and exit code 2: rlrt's own refusals, and Hydra's in plain words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.compose import GROUPS, choice, composed_keys, config_dirs_of, hydra_keys
from rlrt.config.options import SECTIONS, key_of_other_options
from rlrt.config.overrides import ungrammatical
from rlrt.errors import UserError, brief, nearest
from rlrt.paths import CONFIG
from rlrt.records.secrets import masked

HYDRAS = ("hydra", "omegaconf", "antlr4", "yaml")
"""Packages that compose a config: an error raised in one of them is about the typed overrides."""


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Return Hydra's complaint as one sentence with the nearest valid name."""
    from hydra.errors import OverrideParseException

    if isinstance(error, OverrideParseException):
        return ungrammatical(error.override)
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
    if match := re.search(r"Sweep parameters '([^']+)' requires --multirun", text):
        return f"{match[1].split('=')[0].lstrip('+')}: several values make a sweep; add -m."
    if match := re.search(r"Could not find '([^']+?)/([^'/]+)'", text):
        whole = f"{match[1]}/{match[2]}"
        group = whole.split("/")[0] if whole.split("/")[0] in GROUPS else match[1]  # experiment=paper/x is one choice
        name = whole.removeprefix(f"{group}/")
        options = [o for o in re.findall(r"^\t(\S+)$", text, re.MULTILINE) if "/" not in name]
        nested = [str(p.relative_to(CONFIG / group).with_suffix("")) for p in (CONFIG / group).rglob("[!_]*.yaml")]
        known = sorted({*nested, *(o for o in options if o[0] != "_")})
        return f"{group}={name}: there is no such {group}.{nearest(name, known)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    interpolation = next((a for a in arguments if "${" in a), "")
    if "nterpolation" in text and interpolation:
        return f"{interpolation.split('=', 1)[0].lstrip('+~')}: the value of {interpolation!r} cannot be resolved ({lines[0]})."
    typed = next((a for a in arguments if a in text), "")
    sentence = " ".join(line for line in lines[:2] if not line.endswith(":")) or type(error).__name__
    if isinstance(error, RecursionError):
        sentence = "these choices lead to themselves: a file of a config group names its own group in its defaults list"
    return f"{typed}: {sentence}" if typed and not sentence.startswith(typed) else sentence


def of_another_option(name: str, arguments: Sequence[str]) -> str:
    """Return the sentence for a key that only another method, data set or engine has; empty for other keys."""
    group, _, key = name.partition(".")
    if group not in SECTIONS:
        return ""
    folders = [CONFIG, *map(Path, config_dirs_of(arguments))]
    return key_of_other_options(group, key, choice(group, arguments, folders).split(",")[0], folders)


def known_names(arguments: Sequence[str]) -> list[str]:
    """Return every name that could have been meant: keys, config groups, and the launcher's and sweeper's keys."""
    from hydra.errors import HydraException

    try:
        keys = composed_keys(arguments)
    except (HydraException, UserError):
        keys = composed_keys([])
    return [*keys, *GROUPS, *hydra_keys(arguments)]


def guarded(action: Callable[[], Any], arguments: Sequence[str] = ()) -> int:
    """Run ``action``; turn errors that a user can correct into one sentence on standard error and an exit code.

    Args:
        arguments: the typed overrides, to explain Hydra's complaints.

    Returns:
        0, or 2 if rlrt or Hydra refused the command.
    """
    try:
        action()
    except UserError as error:
        print(f"error: {brief(masked(str(error)))}", file=sys.stderr)
        return 2
    except Exception as error:
        refused = unwritable(error, arguments) or (explain(error, arguments) if is_hydras(error) else "")
        if not refused:
            raise
        print(f"error: {brief(masked(refused))}", file=sys.stderr)
        return 2
    return 0


def unwritable(error: Exception, arguments: Sequence[str]) -> str:
    """Return the sentence for a folder of runs or sweeps that cannot be created; empty for all other errors."""
    from hydra.errors import HydraException

    if not isinstance(error, OSError) or isinstance(error, HydraException) or error.filename is None:
        return ""
    if "outputs" not in str(error.filename) and not any("dir=" in a for a in arguments):
        return ""
    key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
    return f"{key}: {error.filename} cannot be written ({error.strerror}); give a writable folder as {key}=FOLDER."


def is_hydras(error: Exception) -> bool:
    """True if Hydra or OmegaConf refused the typed overrides, even by a plain ValueError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    modules, frame = [], error.__traceback__
    while frame is not None:
        modules.append(str(frame.tb_frame.f_globals.get("__name__")).split(".")[0])
        frame = frame.tb_next
    nearest_known = next((m for m in reversed(modules) if m in ("rlrt", *HYDRAS)), "")
    return isinstance(error, (HydraException, OmegaConfBaseException)) or nearest_known in HYDRAS
