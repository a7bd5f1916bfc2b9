"""Code that a config names by import path: whether it belongs to rlrt, and a digest of its source.

The source is read and never imported: Python's finders locate a module, and its syntax tree gives its imports.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from rlrt.errors import UserError

SLOTS = ("advantage", "credit", "policy_loss", "auxiliary")
"""Keys of ``method`` that hold import paths."""
HOMES = {"method": "rlrt.methods.", "data": "rlrt.tasks.", "engine": "rlrt.engines."}
"""The package that holds rlrt's own classes for each section."""
BUILT_IN = ("exact", "math")
"""These verifiers are names, not import paths."""
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
INSTALLED = {"site-packages", "dist-packages"}
"""Names of folders that hold packages installed by pip or the system."""
STANDARD = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})
"""Folders of the standard library."""


def import_paths(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return every import path of a config by its dotted key: method slots, ``_target_``, ``verifier`` and ``data.rewards``.

    Args:
        plain: a config as nested plain values.
    """
    return {key: text for key, text in texts(plain) if is_import_path(key, text)}


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of every text in nested plain values."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts(inner, f"{key}.{number}")
    elif isinstance(value, str):
        yield key, value


def is_import_path(key: str, text: str) -> bool:
    """True if the value of a key is an import path."""
    parts = key.split(".")
    if parts[0] == "hydra":
        return False
    slot = parts[0] == "method" and len(parts) > 1 and parts[1] in SLOTS
    reward = parts[:2] == ["data", "rewards"] and (len(parts) == 3 or parts[3:] == ["function"])
    return slot or reward or parts[-1] == "_target_" or (parts[-1] == "verifier" and text not in BUILT_IN)


def refuse_foreign(plain: Mapping[str, Any], where: str, typed: Collection[str] = ()) -> None:
    """Refuse a stored config that names code outside rlrt: reading somebody's run must not run that person's code.

    Args:
        plain: the stored config.
        where: the run, for the message.
        typed: keys that the current command line sets; their values are allowed.

    Raises:
        UserError: naming the key and the code, and how to allow it.
    """
    for key, path in import_paths(plain).items():
        home = HOMES.get(key.split(".")[0])
        is_ours = (
            home is not None
            and path.startswith(home)
            and not key.endswith(".verifier")
            and not key.startswith("data.rewards.")
        )
        if not is_ours and re.sub(r"\.\d+$", "", key) not in typed:
            raise UserError(
                f"{where}: its stored config names code from outside rlrt ({key}={path}), and reading a run does not start "
                "that code; read the code, and add --trust if you trust it."
            )


def sources(plain: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest, by dotted key, for every import path of a config outside rlrt: its module and what that imports.

    For a module in a user's folder, imports of other modules in users' folders are followed; an installed package counts as a
    whole. A text under any other key counts too if it names something that a user's module defines.
    """
    certain = import_paths(plain)
    digests = {}
    for key, text in texts({k: v for k, v in plain.items() if k != "hydra"}):
        if not DOTTED.fullmatch(text) or in_rlrt_or_stdlib(text):
            continue
        module, name = split(text)
        if key in certain or (not installed(module) and defines(module, name)):
            digests[key] = digest(module)
    return digests


def split(path: str) -> tuple[str, str]:
    """Split an import path into (module, name in it): the longest prefix that is a module, or else the first part."""
    parts = path.split(".")
    count = len(parts) - 1
    while count > 1 and spec_of(".".join(parts[:count])) is None:
        count -= 1
    return ".".join(parts[:count]), parts[count]


def in_rlrt_or_stdlib(name: str) -> bool:
    """True for a module of rlrt (the identity covers all its code) or of the standard library.

    The file's folder is checked, since a user's file may have the name of a standard module.
    """
    top = name.split(".")[0]
    if top not in sys.stdlib_module_names:
        return top == "rlrt"
    file = file_of(top)
    return file is None or any(file.is_relative_to(folder) for folder in STANDARD)


def spec_of(name: str) -> ModuleSpec | None:
    """Find the spec from which Python would import a module, without importing its packages; None if there is none."""
    parent, _, _ = name.rpartition(".")
    locations = None
    if parent:
        outer = spec_of(parent)
        if outer is None or outer.submodule_search_locations is None:
            return None
        locations = list(outer.submodule_search_locations)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, locations)
        except Exception:  # a third-party finder may raise anything
            continue
        if spec is not None:
            return spec
    return None


def file_of(name: str) -> Path | None:
    """Return the source file of a module or package; None for a built-in module or a folder without ``__init__``."""
    spec = spec_of(name)
    return Path(spec.origin).absolute() if spec is not None and spec.has_location and spec.origin else None


def installed(name: str) -> bool:
    """True if pip or the system installed a module, other than as editable."""
    file = file_of(name)
    return file is not None and bool(INSTALLED & set(file.parts))


def defines(module: str, name: str) -> bool:
    """True if a module's source defines or imports a name."""
    file = file_of(module)
    return file is not None and file.is_file() and name in read(file, *stamp(file)).names


def digest(module: str) -> str:
    """Return the SHA-256 of the sources of a module, of its parent packages, and of what they import (see ``sources``)."""
    if installed(module):
        return package_digest(module.split(".")[0])
    waiting, files = [module], dict[str, str]()
    while waiting:
        name = waiting.pop()
        if name in files or in_rlrt_or_stdlib(name) or spec_of(name) is None or installed(name):
            continue
        parent, _, _ = name.rpartition(".")
        waiting += [parent] if parent else []
        file = file_of(name)
        files[name] = ""
        if file is not None and file.is_file():
            source = read(file, *stamp(file))
            files[name] = source.sha
            waiting += imported(source, name, is_package=file.stem == "__init__")
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{files[name]}\n".encode())
    return total.hexdigest()


@functools.cache
def package_digest(top: str) -> str:
    """Return the SHA-256 of all Python files of an installed package, or of its one file; cached per process."""
    file = file_of(top)
    total = hashlib.sha256()
    if file is not None and file.is_file():
        for source in sorted(file.parent.rglob("*.py")) if file.stem == "__init__" else [file]:
            total.update(str(source.relative_to(file.parent)).encode() + b"\0" + source.read_bytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Source:
    """A source file's digest, names and imports.

    Attributes:
        sha: SHA-256 of the file's bytes.
        names: names that the file defines or imports at any level.
        imports: (level, module, name) of every import at any level; level 0 is absolute.
    """

    sha: str
    names: frozenset[str]
    imports: tuple[tuple[int, str, str], ...]


def stamp(file: Path) -> tuple[int, int]:
    """Return size and modification time of a file."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.cache
def read(file: Path, size: int, changed_ns: int) -> Source:
    """Read a file's digest, names and imports; names and imports are empty if the file is not valid Python."""
    content = file.read_bytes()
    sha = hashlib.sha256(content).hexdigest()
    try:
        tree = ast.parse(content) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):  # importing the file later reports the error
        return Source(sha, frozenset(), ())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    imports: set[tuple[int, str, str]] = set()
    for inner in ast.walk(tree):
        if isinstance(inner, ast.Import):
            imports |= {(0, alias.name, "") for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom):
            imports |= {(inner.level, inner.module or "", alias.name) for alias in inner.names}
        elif isinstance(inner, ast.Call) and inner.args and isinstance(inner.args[0], ast.Constant):
            called = inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(inner.args[0].value, str):
                imports.add((0, inner.args[0].value.lstrip("."), ""))
    return Source(sha, frozenset(names), tuple(sorted(imports)))


def imported(source: Source, name: str, is_package: bool) -> list[str]:
    """List the modules that a module's imports may refer to: ``from a import b`` may refer to ``a`` and ``a.b``."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    modules = []
    for level, module, alias in source.imports:
        outer = package[: len(package) - level + 1] if level else []
        base = ".".join([*outer, *([module] if module else [])])
        modules += [base, f"{base}.{alias}"] if alias else [base]
    return [n for n in modules if n.strip(".")]
