"""``+from=RUN``: the overrides that restore a stored run's config, even if defaults have changed since."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.config.compose import GROUPS, composed, config_dirs_of
from rlrt.config.options import option_file
from rlrt.config.overrides import grammar, newlines_read
from rlrt.engines.door import TOKEN, TOKEN_FILE
from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.paths import CONFIG, existing
from rlrt.records.files import is_file, mapping, read_json, resolved
from rlrt.records.secrets import MASK, without_password
from rlrt.records.stored_config import stored_config
from rlrt.records.user_code import refuse_foreign

GLOBAL_GROUPS = ("experiment", "cluster")
"""Groups whose options set values in any section."""
RUN_FOLDERS = ("outputs/runs", "outputs/sweeps/*")
"""Patterns of folders in which a run is searched by its name."""
TRUST = "--trust"
"""Option of commands that read a stored config: the user trusts the code that the config names."""
SKIPPED = ("tracking", "resume", "origin", "trial", "hydra")
"""Sections about where and how a run is recorded: today's values apply, not the stored ones."""


@dataclass(frozen=True)
class Reading:
    """Options of a command that reads stored configs.

    Attributes:
        trust: True if they may name code from outside rlrt, and servers that get this environment's credentials.
        config_dirs: additional folders with config groups.
    """

    trust: bool = False
    config_dirs: tuple[str, ...] = ()


OWN = Reading()
"""Options for one's own runs, made with the shipped config groups."""


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``Reading`` to a command."""
    parser.add_argument(TRUST, action="store_true", help="the runs' configs may name code from outside rlrt: it is run")
    parser.add_argument("--config-dir", "-cd", action="append", default=[], help="a further folder of config groups")


def reading(options: argparse.Namespace) -> Reading:
    """Return the ``Reading`` that the parsed options give."""
    return Reading(options.trust, tuple(options.config_dir))


def expand(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """Replace ``+from=RUN`` in a command line by the overrides that restore that run's config; other typed overrides win.

    ``--trust``, which is removed from the line, lets the stored config name code from outside rlrt. Config groups are also
    searched in the line's ``--config-dir`` and in ``config_dirs``.

    Raises:
        UserError: for a missing run, for two runs, or for a run whose config names foreign code.
    """
    trust = TRUST in arguments
    arguments = [newlines_read(path_quoted(a)) for a in arguments if a != TRUST]
    sources = [a for a in arguments if a.startswith(("+from=", "from="))]
    if not sources:
        return list(arguments)
    if len(sources) > 1:
        raise UserError(f"+from: expected one run, got {len(sources)}.")
    folder = find_run(sources[0].split("=", 1)[1])
    typed = [a for a in arguments if "=" in a and not a.startswith("-") and a not in sources]
    at = arguments.index(sources[0])
    folders = [*config_dirs_of(arguments), *config_dirs]
    origin = [] if any(a.startswith("origin=") for a in typed) else [f"origin={grammar(str(resolved(folder)))}"]
    return [*arguments[:at], *remade(folder, typed, trust, folders), *origin, *arguments[at + 1 :]]


def path_quoted(argument: str) -> str:
    """Quote an override whose value is an existing path with characters of Hydra's grammar: folders of runs, which are models
    too (``model.path=RUN``), have ``=`` and ``,`` in their names."""
    name, sign, value = argument.partition("=")
    special = re.search(r"[=,:(){}\[\]\s]", value) and value[0] not in "'\""
    path = sign and name.endswith("path") and special and existing(value)
    return f"{name}={grammar(value)}" if path else argument


def find_run(name: str) -> Path:
    """Return the folder of a run, given its path or its name below ``outputs/``.

    Raises:
        UserError: if there is no such run, or several.
    """
    candidates = (
        [Path(name)] if is_run(Path(name)) else [p for pattern in RUN_FOLDERS for p in Path().glob(f"{pattern}/{name}")]
    )
    runs = [p for p in candidates if is_run(p)]
    if len(runs) != 1:
        matches = ", ".join(map(str, runs)) or "none"
        raise UserError(
            f"+from={name}: expected the folder of one run (with config.yaml and manifest.json), found {matches}."
        )
    return runs[0]


def is_run(folder: Path) -> bool:
    """True if a folder holds a run's config and manifest."""
    return is_file(folder / "config.yaml") and is_file(folder / "manifest.json")


def remade(folder: Path, typed: Sequence[str], trust: bool = False, config_dirs: Sequence[str] = ()) -> list[str]:
    """Return the overrides of a stored run, without those that ``typed`` replaces, and with old values of changed defaults.

    A typed choice (``method=grpo``) replaces the stored one and every stored value of its section. A stored choice whose file
    is not here, since it came from a ``--config-dir`` that is not given, is replaced by the stored values of its section. The
    stored config is plain text: what looks like an interpolation is not resolved.

    Raises:
        UserError: for a config that cannot be read, that lacks a needed value because it was masked, or that names code from
            outside rlrt without ``trust``.
    """
    from omegaconf import OmegaConf

    names = {a.split("=", 1)[0].lstrip("+~") for a in typed}
    plain = stored_config(folder)
    if not trust:
        taken_over = {name: values for name, values in plain.items() if not replaced(name, names)}
        refuse_foreign(taken_over, str(folder), names)
    before = stored_overrides(folder)
    overrides = [override for o in before if (override := as_it_ran(o, plain, names)) is not None]
    lost = [o for o in overrides if is_lost(o, config_dirs)]
    kept = [o for o in overrides if o not in lost]
    if lost:
        kept = [*kept, *choices_of(folder, names, kept, config_dirs)]
    places = [place_of(o) for o in lost if place_of(o) not in GLOBAL_GROUPS]
    composed_today: Any = OmegaConf.to_container(composed([*kept, *group_choices(typed)], config_dirs), resolve=True)
    today_values, stored_leaves = leaves(composed_today, keep_empty=True), leaves(plain, keep_empty=True)
    overrides = [*kept, *whole_sections(places, today_values, stored_leaves)]
    stored_values = {k: v for k, v in leaves(plain).items() if k in today_values and not replaced(k, names)}
    for name, value in stored_values.items():
        if str(value) == MASK or f"//{MASK}@" in str(value):
            raise UserError(
                f"{name}: {folder} was stored without this value, which holds a secret; type it, as {name}=VALUE."
            )
    restored = [*overrides, *(f"{k}={grammar(v)}" for k, v in stored_values.items() if today_values[k] != v)]
    if not trust:  # the composed config too: it may name code that the stored config does not
        whole: Any = OmegaConf.to_container(composed([*restored, *group_choices(typed)], config_dirs), resolve=True)
        refuse_foreign({k: v for k, v in whole.items() if not replaced(k, names)}, str(folder), names)
        refuse_to_send_token(whole, folder, names)
    return restored


def refuse_to_send_token(plain: Mapping[str, Any], folder: Path, names: set[str]) -> None:
    """Refuse to send this environment's token to the server that a stored config names.

    Raises:
        UserError: naming both.
    """
    engine, held = plain.get("engine"), [name for name in (TOKEN, TOKEN_FILE) if os.environ.get(name)]
    url = engine.get("url") if isinstance(engine, Mapping) else None
    if held and url and not replaced("engine.url", names):
        raise UserError(
            f"engine.url: {folder} names the server {without_password(str(url))}, which would be sent {held[0]} of this "
            "environment; if you know that server, type engine.url=URL, or add --trust."
        )


def place_of(choice: str) -> str:
    """Return the section that a group choice fills: ``data`` for data=NAME, ``data.sources.x`` for data@data.sources.x=NAME."""
    return choice.partition("=")[0].lstrip("+~").split("@")[-1]


def is_lost(override: str, config_dirs: Sequence[str]) -> bool:
    """True if an override chooses an option of a config group whose file is in no folder of config groups."""
    name, _, value = override.partition("=")
    group = name.lstrip("+~").split("@")[0]
    if group not in GROUPS or override.startswith("~") or value in ("", "null"):
        return False
    return option_file(group, value.strip("'\""), [CONFIG, *map(Path, config_dirs)]) is None


def choices_of(folder: Path, names: set[str], kept: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    """Return the choices of a run that a lost experiment or default made, as its manifest has them, as far as they are here."""
    chosen = mapping(read_json(folder / "manifest.json").get("choices"))
    groups = {place_of(o) for o in kept} | {*GLOBAL_GROUPS}
    made = [f"{g}={v}" for g, v in chosen.items() if g in GROUPS and g not in groups and not replaced(g, names)]
    return [o for o in made if re.fullmatch(r"\w+=[\w.-]+(/[\w.-]+)*", o) and not is_lost(o, config_dirs)]


def whole_sections(places: Sequence[str], today: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Return the overrides that give some sections the stored keys and no others.

    Args:
        places: dotted names of the sections.
        today, stored: values by dotted name.
    """

    def inside(key: str) -> bool:
        own = any(key == place or key.startswith(f"{place}.") for place in places)
        return own and re.fullmatch(r"[\w.-]+", key) is not None

    removed = [f"~{key}" for key in today if inside(key) and key not in stored]
    return removed + [f"+{key}={grammar(value)}" for key, value in stored.items() if inside(key) and key not in today]


def stored_overrides(folder: Path) -> list[str]:
    """Return the overrides that were typed for a run, from its manifest."""
    typed = read_json(folder / "manifest.json").get("overrides", [])
    return [str(o) for o in typed] if isinstance(typed, list) else []


def as_it_ran(override: str, plain: Mapping[str, Any], names: set[str]) -> str | None:
    """Return a stored override as it must be given again: a group choice unchanged, a value from the stored config.

    Returns:
        None for a key that is typed anew, not taken over, missing from the stored config, or masked in it.
    """
    name, _, value = override.partition("=")
    key = name.lstrip("+~")
    sign = name[: len(name) - len(key)]
    if replaced(key, names) or key == "sweep" or not re.fullmatch(r"[\w./@-]+", key):
        return None
    group = key.split("@")[0]
    if group.split("/")[0] in GROUPS and "." not in group:
        plain_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)*", value) and not {"..", "."} & set(value.split("/"))
        return override if plain_name else None
    if sign == "~":
        return f"~{key}"
    value_as_stored: Any = plain
    for part in key.split("."):
        value_as_stored = value_as_stored.get(part, MASK) if isinstance(value_as_stored, Mapping) else MASK
    masked = value_as_stored == MASK or f"//{MASK}@" in str(value_as_stored)
    return None if masked else f"{sign}{key}={grammar(value_as_stored)}"


def group_choices(typed: Sequence[str]) -> list[str]:
    """Return the group choices among overrides (one option each: a sweep's first)."""
    groups = [a for a in typed if "." not in a.split("=", 1)[0].split("@")[0] and "=" in a and a[0] not in "+~"]
    return [a.split(",")[0] for a in groups]


def replaced(name: str, typed: set[str]) -> bool:
    """True if a stored key is typed anew, belongs to a section whose choice is typed anew, or is never taken over."""
    place = name.split("@")[-1]  # of a choice for another section than the group's own: data@data.sources.NAME
    section = place.split(".", 1)[0]
    if any(f"{place}.".startswith(f"{t.split('@')[-1]}.") for t in typed if "@" in t):
        return True
    return name in typed or section in typed or section in SKIPPED or section.startswith("hydra/")
