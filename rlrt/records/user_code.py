"""Code that a config names by import path: which code, whether it is rlrt's own, and a digest of its source.

The source is read and never imported here: a module is found by Python's own finders, its imports by its syntax tree.
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
"""Where rlrt's own classes for a section are."""
BUILT_IN = ("exact", "math")
"""Verifiers that are names, not import paths."""
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of packages that pip or the system installed."""
STANDARD = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})
"""Folders of the standard library."""


def named(plain: Mapping[str, Any]) -> dict[str, str]:
    """Every import path at a place of a config that is one: slots, ``_target_``, ``verifier``; by its key in full.

    Args:
        plain: a config as nested plain values.
    """
    return {key: text for key, text in texts(plain) if places(key, text)}


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key in full, text) of every text in nested plain values."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from texts(inner, f"{key}.{number}")
    elif isinstance(value, str):
        yield key, value


def places(key: str, text: str) -> bool:
    """Whether a key holds an import path."""
    parts = key.split(".")
    if parts[0] == "hydra":
        return False
    slot = parts[0] == "method" and len(parts) > 1 and parts[1] in SLOTS
    return slot or parts[-1] == "_target_" or (parts[-1] == "verifier" and text not in BUILT_IN)


def refuse_foreign(plain: Mapping[str, Any], where: str, typed: Collection[str] = ()) -> None:
    """Refuse a stored config that names code outside rlrt: reading somebody's run must not run that person's code.

    Args:
        plain: the stored config.
        where: the run, for the message.
        typed: keys that today's command line sets: what is typed now is meant.

    Raises:
        UserError: naming the key and the code, and how to allow it.
    """
    for key, path in named(plain).items():
        home = HOMES.get(key.split(".")[0])
        own = home is not None and path.startswith(home) and not key.endswith(".verifier")
        if not own and re.sub(r"\.\d+$", "", key) not in typed:
            raise UserError(
                f"{where}: its stored config names code from outside rlrt ({key}={path}), and reading a run does not start "
                "that code; look at it, and add --trust if you know it."
            )


def sources(plain: Mapping[str, Any]) -> dict[str, str]:
    """A digest for every import path of a config that leads out of rlrt: its module's source and what that imports.

    Of a module in a folder of yours all imports are followed that lead to a folder of yours; an installed package counts as a
    whole. A text elsewhere in the config counts too where it names something that a module of yours defines.
    """
    certain = named(plain)
    found = {}
    for key, text in texts({k: v for k, v in plain.items() if k != "hydra"}):
        if not DOTTED.fullmatch(text) or ours_or_pythons(text):
            continue
        module, name = split(text)
        if key in certain or (not installed(module) and defines(module, name)):
            found[key] = digest(module)
    return found


def split(path: str) -> tuple[str, str]:
    """(module, name in it) of an import path: the longest beginning that is a module, or the first part where none is."""
    parts = path.split(".")
    count = len(parts) - 1
    while count > 1 and spec_of(".".join(parts[:count])) is None:
        count -= 1
    return ".".join(parts[:count]), parts[count]


def ours_or_pythons(name: str) -> bool:
    """Whether a module is rlrt's, whose code is in the identity as a whole, or really of the standard library.

    A file of one's own may have a name that Python uses too.
    """
    top = name.split(".")[0]
    if top not in sys.stdlib_module_names:
        return top == "rlrt"
    file = file_of(top)
    return file is None or any(file.is_relative_to(folder) for folder in STANDARD)


def spec_of(name: str) -> ModuleSpec | None:
    """Where Python would import a module from; no package is imported for it."""
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
        except Exception:  # a finder of somebody's
            continue
        if spec is not None:
            return spec
    return None


def file_of(name: str) -> Path | None:
    """The source of a module: its file, or a package's ``__init__``; None for a built-in one and a folder without one."""
    spec = spec_of(name)
    return Path(spec.origin).absolute() if spec is not None and spec.has_location and spec.origin else None


def installed(name: str) -> bool:
    """Whether a module was installed by pip or the system (and not as editable)."""
    file = file_of(name)
    return file is not None and bool(INSTALLED & set(file.parts))


def defines(module: str, name: str) -> bool:
    """Whether a module's source defines or imports a name."""
    file = file_of(module)
    return file is not None and file.is_file() and name in read(file, *stamp(file)).names


def digest(module: str) -> str:
    """SHA-256 over the source of a module, of the packages around it, and of what they import (see ``sources``)."""
    if installed(module):
        return package_digest(module.split(".")[0])
    waiting, files = [module], dict[str, str]()
    while waiting:
        name = waiting.pop()
        if name in files or ours_or_pythons(name) or spec_of(name) is None or installed(name):
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
    """SHA-256 over all Python files of an installed package, or over its one file; read once a process."""
    file = file_of(top)
    total = hashlib.sha256()
    if file is not None and file.is_file():
        for source in sorted(file.parent.rglob("*.py")) if file.stem == "__init__" else [file]:
            total.update(str(source.relative_to(file.parent)).encode() + b"\0" + source.read_bytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Source:
    """What is read of a file.

    Attributes:
        sha: SHA-256 of its bytes.
        names: what it defines or imports anywhere in it.
        imports: (level, module, name) of every import anywhere in it; level 0 is absolute.
    """

    sha: str
    names: frozenset[str]
    imports: tuple[tuple[int, str, str], ...]


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of change of a file."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@functools.cache
def read(file: Path, size: int, changed_ns: int) -> Source:
    """A file's digest, names and imports; what is no Python source has none of the latter two."""
    content = file.read_bytes()
    sha = hashlib.sha256(content).hexdigest()
    try:
        tree = ast.parse(content) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):  # whoever imports it says so in a sentence
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
    """The modules that a module's imports may mean: ``from a import b`` may mean ``a`` and ``a.b``."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    found = []
    for level, module, alias in source.imports:
        outer = package[: len(package) - level + 1] if level else []
        base = ".".join([*outer, *([module] if module else [])])
        found += [base, f"{base}.{alias}"] if alias else [base]
    return [n for n in found if n.strip(".")]
