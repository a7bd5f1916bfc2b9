"""What the files of config groups say without being composed: which option has a key, whose tuned values an option inherits."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.keys import leaves
from rlrt.paths import CONFIG

SECTIONS = ("method", "data", "engine")
"""Groups whose options declare keys of their own, in the section of the group's name."""


def content(file: Path) -> dict[str, Any]:
    """A YAML file as plain values; {} where it is none, or cannot be read: Hydra says so when it composes."""
    from omegaconf import OmegaConf

    try:
        plain = OmegaConf.to_container(OmegaConf.load(file))
    except Exception:  # YAML's and OmegaConf's own types
        return {}
    return {str(k): v for k, v in plain.items()} if isinstance(plain, dict) else {}


def option_file(group: str, name: str, folders: Sequence[Path]) -> Path | None:
    """The file of an option; the folders are searched in order."""
    files = (folder / group / f"{name}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def lineage(group: str, name: str, folders: Sequence[Path] = (CONFIG,)) -> Iterator[tuple[str, dict[str, Any]]]:
    """An option and those of its group that its defaults list names, nearest first: (name, content of its file)."""
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
    """The options of a group that an entry of a defaults list in that group names, in any of Hydra's spellings."""
    if isinstance(default, dict):
        ((key, value),) = default.items() if len(default) == 1 else (("", None),)
        where = str(key).split("@")[0].removeprefix("optional ").strip()
        values = value if isinstance(value, list) else [value]
        return [f"{v}" for v in values if isinstance(v, str)] if where == f"/{group}" else []
    text = str(default).split("@")[0].removesuffix(".yaml").strip()
    path = posixpath.normpath(text if text.startswith("/") else f"/{group}/{text}")
    inside = path.startswith(f"/{group}/") and text != "_self_"
    return [path.removeprefix(f"/{group}/")] if inside else []


def section_of(group: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a group's section in an option's file: in a mapping of that name, or at the file's top."""
    inside = values.get(group)
    return inside if isinstance(inside, dict) else values


def having(group: str, key: str, folders: Sequence[Path] = (CONFIG,)) -> list[str]:
    """The options of a group that have a key, by name."""
    names = {p.stem for folder in folders for p in (folder / group).glob("[!_]*.yaml")}
    return [
        name
        for name in sorted(names)
        if any(key in section_of(group, values) for _, values in lineage(group, name, folders))
    ]


def elsewhere(group: str, key: str, option: str, folders: Sequence[Path] = (CONFIG,)) -> str:
    """`` GROUP OPTION has no such key; A and B have.`` for a key that only other options have; empty for all other keys."""
    names = [n for n in having(group, key, folders) if n != option] if group in SECTIONS else []
    if not names:
        return ""
    several = f"{', '.join(names[:-1])} and {names[-1]} have" if len(names) > 1 else f"{names[0]} has"
    return f"{group} {option} has no such key; {several}."


def inherited(model: str, method: str, folders: Sequence[Path] = (CONFIG,)) -> tuple[str, dict[str, Any], bool]:
    """The tuned values of a pair of model and method that an option takes over from the one it derives from.

    conf/tuned goes by names, so a method that derives from rlrt in its defaults list would lose rlrt's tuned pair, and a
    comparison of the two would compare two settings. What the method itself sets stays.

    Returns:
        (the ancestor whose pair it is, values by dotted key, whether these are all of the pair's); no values where the method
        has a pair of its own, or none has one.
    """
    own: set[str] = set()
    for name, values in lineage("method", method, folders):
        file = option_file("tuned", f"{model}_{name}", folders)
        if file is not None:
            tuned = {} if name == method else leaves(content(file))
            kept = {k: v for k, v in tuned.items() if k not in own}
            return name, kept, kept == tuned
        own |= {*leaves({k: v for k, v in values.items() if k != "defaults"})}
        own |= {f"method.{k}" for k in leaves(section_of("method", values)) if "." not in k}
    return "", {}, False
