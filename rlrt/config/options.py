"""Facts about config groups read from their files without composing: which option has a key, whose tuned values an option
inherits."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.keys import leaves
from rlrt.paths import CONFIG

SECTIONS = ("method", "data", "engine")
"""Groups whose options declare their own keys, in the section with the group's name."""


def content(file: Path) -> dict[str, Any]:
    """Return a YAML file as plain values; {} if it is missing or unreadable: Hydra reports that when it composes."""
    from omegaconf import OmegaConf

    try:
        plain = OmegaConf.to_container(OmegaConf.load(file))
    except Exception:  # YAML's and OmegaConf's own types
        return {}
    return {str(k): v for k, v in plain.items()} if isinstance(plain, dict) else {}


def option_file(group: str, name: str, folders: Sequence[Path]) -> Path | None:
    """Return the file of an option; the folders are searched in order."""
    files = (folder / group / f"{name}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def lineage(group: str, name: str, folders: Sequence[Path] = (CONFIG,)) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an option and all options that its defaults list names, nearest first: (name, content of its file)."""
    waiting, seen = [name], set[str]()
    while waiting:
        one = waiting.pop(0)
        file = option_file(group, one, folders)
        if one in seen or file is None:
            continue
        seen.add(one)
        values = content(file)
        yield one, values
        defaults = values.get("defaults")
        waiting += reversed([n for d in (defaults if isinstance(defaults, list) else []) for n in named(group, d)])


def named(group: str, default: Any) -> list[str]:
    """Return the options of a group that an entry of a defaults list in that group names, in any of Hydra's spellings."""
    if isinstance(default, dict):
        ((key, value),) = default.items() if len(default) == 1 else (("", None),)
        target = str(key).split("@")[0].removeprefix("optional ").strip()
        values = value if isinstance(value, list) else [value]
        return [f"{v}" for v in values if isinstance(v, str)] if target == f"/{group}" else []
    text = str(default).split("@")[0].removesuffix(".yaml").strip()
    path = posixpath.normpath(text if text.startswith("/") else f"/{group}/{text}")
    inside = path.startswith(f"/{group}/") and text != "_self_"
    return [path.removeprefix(f"/{group}/")] if inside else []


def section_of(group: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys of a group's section in an option's file: a mapping with the group's name, or the whole file."""
    inside = values.get(group)
    return inside if isinstance(inside, dict) else values


def options_with_key(group: str, key: str, folders: Sequence[Path] = (CONFIG,)) -> list[str]:
    """Return the names of a group's options that have a key."""
    names = {p.stem for folder in folders for p in (folder / group).glob("[!_]*.yaml")}
    return [
        name
        for name in sorted(names)
        if any(key in section_of(group, values) for _, values in lineage(group, name, folders))
    ]


def key_of_other_options(group: str, key: str, option: str, folders: Sequence[Path] = (CONFIG,)) -> str:
    """Return `` GROUP OPTION has no such key; A and B have.`` for a key that only other options have; empty for other keys."""
    names = [n for n in options_with_key(group, key, folders) if n != option] if group in SECTIONS else []
    if not names:
        return ""
    several = f"{', '.join(names[:-1])} and {names[-1]} have" if len(names) > 1 else f"{names[0]} has"
    return f"{group} {option} has no such key; {several}."


def inherited(model: str, method: str, folders: Sequence[Path] = (CONFIG,)) -> tuple[str, dict[str, Any], bool]:
    """Return the tuned values of a model that a method inherits from the method that it derives from.

    Files in conf/tuned are named by model and method, so a method that derives from rlrt in its defaults list would lose rlrt's
    tuned values, and a comparison of both would confound method and settings. The method's own values take precedence.

    Returns:
        (the ancestor with a tuned file, values by dotted key, True if these are all of the file's); no values if the method
        has a tuned file of its own, or no ancestor has one.
    """
    own_keys: set[str] = set()
    for name, values in lineage("method", method, folders):
        file = option_file("tuned", f"{model}_{name}", folders)
        if file is not None:
            tuned = {} if name == method else leaves(content(file))
            inherited_values = {k: v for k, v in tuned.items() if k not in own_keys}
            return name, inherited_values, inherited_values == tuned
        own_keys |= {*leaves({k: v for k, v in values.items() if k != "defaults"})}
        own_keys |= {f"method.{k}" for k in leaves(section_of("method", values)) if "." not in k}
    return "", {}, False
