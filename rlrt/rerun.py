"""``+from=RUN``: the overrides that make a stored run's config again, whatever defaults have changed since."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.folder import read_json
from rlrt.hydra_setup import composed

PLACES = ("outputs/runs", "outputs/sweeps/*")
SKIPPED = ("tracking", "resume", "trial", "hydra")
"""Sections that say where and how a run is kept: today's hold."""


def expand(arguments: Sequence[str]) -> list[str]:
    """A command line with ``+from=RUN`` replaced by the overrides that lead to that run's config; what else was typed wins.

    Raises:
        UserError: for a run that is not there, or two of them.
    """
    arguments = [path_quoted(a) for a in arguments]
    given = [a for a in arguments if a.startswith(("+from=", "from="))]
    if not given:
        return list(arguments)
    if len(given) > 1:
        raise UserError(f"+from: expected one run, got {len(given)}.")
    folder = find(given[0].split("=", 1)[1])
    typed = [a for a in arguments if "=" in a and not a.startswith("-") and a not in given]
    at = arguments.index(given[0])
    return [*arguments[:at], *remade(folder, typed), *arguments[at + 1 :]]


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


def remade(folder: Path, typed: Sequence[str]) -> list[str]:
    """The overrides of a stored run, without what ``typed`` replaces, and with the values of defaults that changed since.

    A typed choice (``method=grpo``) replaces the stored one and every stored value of its section.
    """
    from omegaconf import OmegaConf

    names = {a.split("=", 1)[0].lstrip("+~") for a in typed}
    stored = [str(o) for o in read_json(folder / "manifest.json").get("overrides", []) if "***" not in str(o)]
    kept = [o for o in stored if not replaced(o.split("=", 1)[0].lstrip("+~"), names)]
    kept = [o for o in kept if not o.startswith("+sweep=")]
    plain: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    today: Any = OmegaConf.to_container(composed([*kept, *chosen(typed)]), resolve=True)
    now = leaves(today)
    known = {k: v for k, v in leaves(plain).items() if "***" not in str(v)}  # masked: today's holds
    drift = [f"{k}={grammar(v)}" for k, v in known.items() if k in now and now[k] != v]
    return [*kept, *(o for o in drift if not replaced(o.split("=", 1)[0], names))]


def chosen(typed: Sequence[str]) -> list[str]:
    """The choices of config groups among overrides (one option each: a sweep's first)."""
    return [a.split(",")[0] for a in typed if "." not in a.split("=", 1)[0] and "=" in a and a[0] not in "+~"]


def replaced(name: str, typed: set[str]) -> bool:
    """Whether a stored key is typed anew, belongs to a section whose choice is, or is not taken over at all."""
    section = name.split(".", 1)[0]
    return name in typed or section in typed or section in SKIPPED or section.startswith("hydra/")


def leaves(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of all that is no section."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        full = f"{prefix}{name}"
        found |= leaves(value, full + ".") if isinstance(value, dict) else {full: value}
    return found


def grammar(value: Any) -> str:
    """A value in Hydra's override grammar, where a backslash counts as one only before a quote or at the end."""
    if isinstance(value, str):
        quoted = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
        return "'" + re.sub(r"\\+$", lambda m: m[0] * 2, quoted) + "'"
    if isinstance(value, list):
        return "[" + ",".join(map(grammar, value)) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
