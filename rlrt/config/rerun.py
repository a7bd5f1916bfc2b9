"""``+from=RUN``: the overrides that make a stored run's config again, whatever defaults have changed since."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.config.compose import GROUPS, composed, config_dirs_of
from rlrt.config.overrides import grammar
from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.records.files import read_json
from rlrt.records.secrets import MASK
from rlrt.records.stored_config import stored_config
from rlrt.records.user_code import refuse_foreign

PLACES = ("outputs/runs", "outputs/sweeps/*")
TRUST = "--trust"
"""Option of a command that reads a stored config: the code that it names is known."""
SKIPPED = ("tracking", "resume", "trial", "hydra")
"""Sections that say where and how a run is kept: today's hold."""


@dataclass(frozen=True)
class Reading:
    """How a command reads stored configs.

    Attributes:
        trust: whether they may name code from outside rlrt, and servers that get this environment's credentials.
        config_dirs: more folders to look for config groups in.
    """

    trust: bool = False
    config_dirs: tuple[str, ...] = ()


OWN = Reading()
"""Of one's own runs, made with the shipped config groups."""


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Give a command the options of ``Reading``."""
    parser.add_argument(TRUST, action="store_true", help="the runs' configs may name code from outside rlrt: it is run")
    parser.add_argument("--config-dir", "-cd", action="append", default=[], help="a further folder of config groups")


def reading(given: argparse.Namespace) -> Reading:
    """The values of these options."""
    return Reading(given.trust, tuple(given.config_dir))


def expand(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """A command line with ``+from=RUN`` replaced by the overrides that lead to that run's config; what else was typed wins.

    ``--trust``, which goes from the line, lets the stored config name code from outside rlrt. Config groups are also looked
    for in the line's ``--config-dir`` and in ``config_dirs``.

    Raises:
        UserError: for a run that is not there, or two of them, or one whose config names foreign code.
    """
    trust = TRUST in arguments
    arguments = [path_quoted(a) for a in arguments if a != TRUST]
    given = [a for a in arguments if a.startswith(("+from=", "from="))]
    if not given:
        return list(arguments)
    if len(given) > 1:
        raise UserError(f"+from: expected one run, got {len(given)}.")
    folder = find(given[0].split("=", 1)[1])
    typed = [a for a in arguments if "=" in a and not a.startswith("-") and a not in given]
    at = arguments.index(given[0])
    folders = [*config_dirs_of(arguments), *config_dirs]
    return [*arguments[:at], *remade(folder, typed, trust, folders), *arguments[at + 1 :]]


def path_quoted(argument: str) -> str:
    """An override whose value is a path that is there, quoted where Hydra's grammar would trip over it: the folders of runs,
    which are models too (``model.path=RUN``), have ``=`` and ``,`` in their names."""
    name, sign, value = argument.partition("=")
    special = re.search(r"[=,:(){}\[\]\s]", value) and value[0] not in "'\""
    path = sign and name.endswith("path") and special and Path(value).expanduser().exists()
    return f"{name}={grammar(value)}" if path else argument


def find(name: str) -> Path:
    """The folder of a run, by path or by its name below ``outputs/``.

    Raises:
        UserError: if there is none, or several.
    """
    found = [Path(name)] if is_run(Path(name)) else [p for place in PLACES for p in Path().glob(f"{place}/{name}")]
    runs = [p for p in found if is_run(p)]
    if len(runs) != 1:
        many = ", ".join(map(str, runs)) or "none"
        raise UserError(
            f"+from={name}: expected the folder of one run (with config.yaml and manifest.json), found {many}."
        )
    return runs[0]


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run's papers."""
    return (folder / "config.yaml").is_file() and (folder / "manifest.json").is_file()


def remade(folder: Path, typed: Sequence[str], trust: bool = False, config_dirs: Sequence[str] = ()) -> list[str]:
    """The overrides of a stored run, without what ``typed`` replaces, and with the values of defaults that changed since.

    A typed choice (``method=grpo``) replaces the stored one and every stored value of its section. Of the stored config all is
    text: what looks like an interpolation stays as it stands.

    Raises:
        UserError: for a config that cannot be read or was stored with a masked value that is needed, or that names code from
            outside rlrt without ``trust``.
    """
    from omegaconf import OmegaConf

    names = {a.split("=", 1)[0].lstrip("+~") for a in typed}
    plain = stored_config(folder)
    if not trust:
        left = {name: values for name, values in plain.items() if not replaced(name, names)}
        refuse_foreign(left, str(folder), names)
    kept = [again for o in stored_overrides(folder) if (again := as_it_ran(o, plain, names)) is not None]
    today: Any = OmegaConf.to_container(composed([*kept, *chosen(typed)], config_dirs), resolve=True)
    now = leaves(today)
    then = {k: v for k, v in leaves(plain).items() if k in now and not replaced(k, names)}
    for name, value in then.items():
        if str(value) == MASK or f"//{MASK}@" in str(value):
            raise UserError(
                f"{name}: {folder} was stored without this value, which holds a secret; type it, as {name}=VALUE."
            )
    made = [*kept, *(f"{k}={grammar(v)}" for k, v in then.items() if now[k] != v)]
    if not trust:  # what they compose to, whatever the stored config said
        whole: Any = OmegaConf.to_container(composed([*made, *chosen(typed)], config_dirs), resolve=True)
        refuse_foreign({k: v for k, v in whole.items() if not replaced(k, names)}, str(folder), names)
    return made


def stored_overrides(folder: Path) -> list[str]:
    """What was typed for a run, as its manifest has it."""
    typed = read_json(folder / "manifest.json").get("overrides", [])
    return [str(o) for o in typed] if isinstance(typed, list) else []


def as_it_ran(override: str, plain: Mapping[str, Any], names: set[str]) -> str | None:
    """A stored override as it is given again: a choice of a config group as it stands, a value as the stored config has it.

    Returns:
        None for what is typed anew, not taken over, not in the stored config, or masked there.
    """
    name, _, value = override.partition("=")
    key = name.lstrip("+~")
    sign = name[: len(name) - len(key)]
    if replaced(key, names) or key == "sweep" or not re.fullmatch(r"[\w./@-]+", key):
        return None
    if key.split("@")[0].split("/")[0] in GROUPS and "." not in key:
        plain_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)*", value) and not {"..", "."} & set(value.split("/"))
        return override if plain_name else None
    if sign == "~":
        return f"~{key}"
    found: Any = plain
    for part in key.split("."):
        found = found.get(part, MASK) if isinstance(found, Mapping) else MASK
    masked = found == MASK or f"//{MASK}@" in str(found)
    return None if masked else f"{sign}{key}={grammar(found)}"


def chosen(typed: Sequence[str]) -> list[str]:
    """The choices of config groups among overrides (one option each: a sweep's first)."""
    return [a.split(",")[0] for a in typed if "." not in a.split("=", 1)[0] and "=" in a and a[0] not in "+~"]


def replaced(name: str, typed: set[str]) -> bool:
    """Whether a stored key is typed anew, belongs to a section whose choice is, or is not taken over at all."""
    section = name.split(".", 1)[0]
    return name in typed or section in typed or section in SKIPPED or section.startswith("hydra/")
