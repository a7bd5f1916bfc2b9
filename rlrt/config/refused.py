"""Report a user's error as one sentence and exit code 2: rlrt's own refusals, and Hydra's in plain words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.compose import GROUPS, choice, composed_keys, config_dirs_of, hydra_keys
from rlrt.config.load import unresolved
from rlrt.config.options import SECTIONS, key_of_other_options
from rlrt.config.overrides import parsed, refuse_long_name, refuse_no_option, ungrammatical
from rlrt.errors import UserError, brief, first_line, nearest, shown
from rlrt.paths import CONFIG
from rlrt.records.printable import printable
from rlrt.records.secrets import masked
from rlrt.records.storage import DENIED, is_full_disk

HYDRAS = ("hydra", "omegaconf", "antlr4", "yaml")
"""Packages that compose a config: an error raised in one of them is about the typed overrides."""


SHOWS = ("--cfg", "-c", "--help", "-h", "--hydra-help", "--info", "-i", "--version", "--shell-completion", "-sc")
"""Options with which Hydra shows something and runs nothing."""
OF_SWEEPS = re.compile(r"hydra([./](launcher|sweeper)|\.sweep)([./@].*)?")
"""Names of keys and groups that a single run does not read."""
OPTIONS = "hydra.launcher.additional_parameters."
"""Beginning of the names of keys that are sbatch's."""
OF_RUNS = {
    "hydra.run.dir": "give the sweep's folder as hydra.sweep.dir=FOLDER",
    "hydra.sweep.subdir": "a job's folder is named after what tells it from the others",
}
"""Keys that a sweep does not read, and what to do instead."""


def refuse_out_of_place(arguments: Sequence[str]) -> None:
    """Refuse what was typed for a sweep without ``-m``, and what was typed for a single run with it: it would be ignored.

    Raises:
        UserError: naming the key.
    """
    names = [a.split("=", 1)[0].lstrip("+~") for a in arguments if not a.startswith("-")]
    for argument in arguments:
        refuse_long_name(argument)
    if {a.split("=", 1)[0] for a in arguments} & set(SHOWS):
        return
    if "hydra.mode" in names:
        raise UserError("hydra.mode: a sweep begins with -m, and a single run without it; leave hydra.mode out.")
    several = bool({"-m", "--multirun"} & set(arguments))
    for name in names:
        if several and name in OF_RUNS:
            raise UserError(f"{name}: a sweep does not read it; {OF_RUNS[name]}.")
        if not several and OF_SWEEPS.fullmatch(name):
            raise UserError(f"{name}: only a sweep reads it, and this is a single run; add -m, or leave it out.")


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
        if name.startswith(OPTIONS):
            return f"{name}: an option of sbatch is added with a plus: +{name}=VALUE."
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
    if match := re.search(r"Could not (?:find|load) '([^']+?)/([^'/]*)'", text):
        whole = f"{match[1]}/{match[2]}"
        group = whole.split("/")[0] if whole.split("/")[0] in GROUPS else match[1]  # experiment=paper/x is one choice
        name = whole.removeprefix(f"{group}/")
        options = [o for o in re.findall(r"^\t(\S+)$", text, re.MULTILINE) if "/" not in name]
        nested = [str(p.relative_to(CONFIG / group).with_suffix("")) for p in (CONFIG / group).rglob("[!_]*.yaml")]
        known = sorted({*nested, *(o for o in options if o[0] != "_")})
        return f"{group}={name}: there is no such {group}.{nearest(name, known)}"
    if isinstance(error, RecursionError):
        return "these choices lead to themselves: a file of a config group names its own group in its defaults list"
    if sentence := of_value(error, arguments):
        return sentence
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    typed = next((a for a in arguments if a in text), "").lstrip("+~")
    sentence = " ".join(line for line in lines[:2] if not line.endswith(":")) or type(error).__name__
    return f"{shown(typed)}: {sentence}" if typed and not sentence.startswith(typed) else sentence


def of_value(error: Exception, arguments: Sequence[str]) -> str:
    """Return the sentence for a value that cannot stand where it was typed, or an interpolation without a value; or ""."""
    text = str(error)
    overrides = [a for a in arguments if not a.startswith("-")]
    typed = {a.split("=", 1)[0].lstrip("+~"): a.partition("=")[2] for a in overrides}
    if match := re.match(r"Could not delete from config. '([^']+)' does not exist", text):
        return f"{match[1]}: there is no such key to take out."
    if re.match(
        r"(Config group override (must be|value)|Exceeds the limit)", text
    ):  # Hydra names neither key nor value
        try:
            for override in parsed(overrides):
                refuse_no_option(override)
        except UserError as refusal:
            return str(refusal)
    if match := re.match(r"Error merging override (.*)", text):
        name = match[1].split("=", 1)[0].lstrip("+~")
        why = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        return f"{name}: the value {shown(typed.get(name, match[1].partition('=')[2]))} does not fit here{why}."
    if "nterpolation" not in text and "${" not in text:
        return ""
    if getattr(error, "full_key", None):
        return unresolved(error, overrides)
    guilty = next((a for a in overrides if "${" in a or a.startswith("~")), "")
    return (
        f"{guilty.split('=', 1)[0].lstrip('+~')}: {shown(guilty)} leads nowhere ({first_line(error)})."
        if guilty
        else ""
    )


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
        print(f"error: {printable(brief(masked(str(error))))}", file=sys.stderr)
        return 2
    except Exception as error:
        refused = unwritable(error, arguments) or (explain(error, arguments) if is_hydras(error) else "")
        if not refused:
            raise
        print(f"error: {printable(brief(masked(refused)))}", file=sys.stderr)
        return 2
    return 0


def unwritable(error: Exception, arguments: Sequence[str]) -> str:
    """Return the sentence for a full disk, and for a folder of runs or sweeps that cannot be created; or ""."""
    from hydra.errors import HydraException

    if not isinstance(error, OSError) or isinstance(error, HydraException):
        return ""
    where = "" if error.filename is None else f"{error.filename}: "
    if is_full_disk(error):
        return f"{where}the disk is full; free some space and give the same command again."
    if error.filename is None:
        return ""
    if "outputs" not in str(error.filename) and not any("dir=" in a for a in arguments):
        return f"{where}it may not be read or written ({error.strerror})." if error.errno in DENIED else ""
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
