"""The grammar of Hydra's overrides: how values are written, and how what was typed is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, nearest, shown
from rlrt.paths import CONFIG

PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Pattern of a key that needs no quoting in Hydra's grammar."""
TEXTS = ("prompt_template", "template", "response_template", "instruction", "stop_tokens", "examples")
"""Last parts of the keys whose texts a model reads: in a typed one, a backslash and an n are a newline."""
NEWLINE = re.compile(r"(?<!\\)\\n(?!(?:abla|e|earrow|eg|eq|ewline|geq|leq|oindent|ot|otin|u)(?![A-Za-z]))")
"""Pattern of a newline as it is typed; not that of a LaTeX command that begins with n, nor what follows another backslash."""
NEW = "\n"
OWN_SECTIONS = ("hydra.launcher", "hydra.sweeper")
"""Sections of Hydra's whose keys rlrt declares and checks itself."""


def grammar(value: Any) -> str:
    """Return a value in Hydra's override grammar, where a backslash is an escape only before a quote or at the end.

    Raises:
        UserError: for a mapping with a key that the grammar cannot quote: unquoted it would be parsed as something else.
    """
    if isinstance(value, str):
        # OmegaConf's own escape: plain text, no interpolation
        text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", value)
        quoted = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", text)
        return "'" + re.sub(r"\\+$", lambda m: m[0] * 2, quoted) + "'"
    if isinstance(value, list):
        return "[" + ",".join(map(grammar, value)) + "]"
    if isinstance(value, dict):
        for name in value:
            if not PLAIN_KEY.fullmatch(str(name)):
                raise UserError(
                    f"expected keys of letters, digits and _ in a mapping that becomes an override, got {str(name)!r:.60}."
                )
        return "{" + ",".join(f"{k}:{grammar(v)}" for k, v in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def written(value: Any) -> str:
    """Return a value of YAML as it is typed: ``grammar``, with quotes only around a text that would be read as something else.

    So names of files and jobs stay readable (``method=rlrt``), and ``null``, ``{prompt}>`` and ``a,b`` arrive as what they are.
    """
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_./-]+", value) and read_back(value) == value:
        return value
    return grammar(value)


def read_back(text: str) -> Any:
    """Return the value that Hydra reads from a typed text; None if it cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={text}").value()
    except (HydraException, RecursionError, ValueError):
        return None


class GroupOptions:
    """What Hydra's parser asks a config loader for: the options of a config group, for ``GROUP=glob(PATTERN)``.

    Args:
        folders: folders with config groups, beside the shipped ones.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [*folders, CONFIG]

    def get_group_options(self, group: str, results_filter: Any = None) -> list[str]:
        """Return the options of a group, also those in its subfolders; files whose name begins with _ are parts of others."""
        roots = [folder / group for folder in self._folders]
        files = [(root, file) for root in roots for file in root.rglob("[!_]*.yaml")]
        return sorted({str(file.relative_to(root).with_suffix("")) for root, file in files})


def parsed(arguments: Sequence[str], folders: Sequence[Path] = ()) -> list[Any]:
    """Parse typed overrides.

    Args:
        arguments: overrides in Hydra's grammar.
        folders: further folders with config groups.

    Raises:
        UserError: naming the override that is not in the grammar.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader=GroupOptions(folders))  # type: ignore[arg-type]
    overrides: list[Any] = []
    for argument in arguments:
        try:
            overrides += parser.parse_overrides([argument])
        except (HydraException, RecursionError, ValueError):  # ValueError: a whole number of thousands of digits
            raise UserError(ungrammatical(argument)) from None
        if not overrides[-1].key_or_group:
            raise UserError(ungrammatical(argument))
    return overrides


def ungrammatical(argument: str) -> str:
    """Return the sentence for an override that Hydra's grammar does not have."""
    name, equals, value = argument.partition("=")
    if (not equals and not argument.startswith("~")) or not name.lstrip("+~"):
        return f"{shown(argument)}: expected KEY=VALUE."
    if not re.fullmatch(r"[+~]*[A-Za-z0-9_./@:$-]+", name):
        return f"{shown(argument)}: expected KEY=VALUE with a key of letters, digits, dots and _, got the key {shown(name)}."
    return (
        f"{name.lstrip('+~')}: expected a value in Hydra's grammar, got {shown(value)}; close every bracket and quote, and put "
        f"a text with special signs into two pairs of quotes: '{name}=\"TEXT\"'."
    )


LONGEST = 200
"""Characters of a name that may be a file's: file systems take 255 bytes."""


def refuse_long_name(argument: str) -> None:
    """Refuse a key, or an option of a config group, that is longer than any file's name: looking for its file would fail.

    Raises:
        UserError: with its beginning.
    """
    name, _, value = argument.partition("=")
    if len(name) > LONGEST:
        raise UserError(f"{shown(name)}: there is no such key.")
    if len(value) > LONGEST and any(len(part) > LONGEST for part in value.split(",")) and "." not in name:
        group = name.lstrip("+~")
        if group == "sweep" or (CONFIG / group).is_dir():
            raise UserError(f"{group}: there is no such {group} as {shown(value)}.")


def refuse_no_option(override: Any) -> None:
    """Refuse a value that is no option of a config group: null, a number, an empty text.

    Raises:
        UserError: naming the group and its options.
    """
    group, value = override.key_or_group, override.value()
    if override.is_delete() or override.is_sweep_override() or not (CONFIG / group).is_dir():
        return
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names) and value != {} and not isinstance(value, dict):
        options = GroupOptions([]).get_group_options(group)
        raise UserError(f"{group}: expected the name of an option, got {grammar(value)}.{nearest('', options)}")


def mapping_opened(argument: str) -> str:
    """Return ``KEY={...}`` as ``++KEY={...}``: Hydra adds no key to a mapping otherwise, not even to an empty one.

    Keys that nobody declares are refused when the config is checked. Hydra's own sections are left to Hydra.
    """
    name, _, value = argument.partition("=")
    is_hydras = name.split(".")[0] == "hydra" and not name.startswith(OWN_SECTIONS)
    is_key = (
        re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name) and not (CONFIG / name).is_dir()
    )  # else a config group
    if not value.lstrip().startswith("{") or not is_key or is_hydras:
        return argument
    return f"++{argument}" if isinstance(read_back(value), dict) else argument


def newlines_read(argument: str) -> str:
    """Return a typed override with the newlines of a text that a model reads; one that came from a file is left alone.

    A shell hands over ``\\n`` as two characters, and in Hydra's grammar it stays two. So a prompt's newline, or the stop token
    of a line's end, could be typed by bash's own quotes alone. YAML files have newlines of their own.
    """
    name, _, value = argument.partition("=")
    if name.rsplit(".", 1)[-1] not in TEXTS or not NEWLINE.search(value):
        return argument
    meant = None if "${" in value else read_back(value)
    if isinstance(meant, (str, list)):
        return f"{name}={grammar(with_newlines(meant))}"
    return f"{name}={NEWLINE.sub(NEW, value)}"  # an axis: its texts stand in quotes


def with_newlines(value: Any) -> Any:
    """Return a typed value with newlines in its texts, also in those of lists and mappings inside it."""
    if isinstance(value, dict):
        return {name: with_newlines(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_newlines(inner) for inner in value]
    return NEWLINE.sub(NEW, value) if isinstance(value, str) else value
