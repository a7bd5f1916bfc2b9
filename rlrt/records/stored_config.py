"""A run's ``config.yaml``: written so that every YAML reader gets the same values, and read as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records.files import Unreadable, read_text

NUMBER_LIKE = re.compile(r"[-+]?(\d[\d_]*)?\.?\d*([eE][-+]?\d+)?")
"""A text of this form may be read as a number by YAML 1.1 or 1.2."""
LARGEST_CONFIG = 200_000
"""Bytes of the largest stored config: rlrt's have about 5,000, and YAML of this size takes seconds to parse."""
DEEPEST = 20
"""Levels of nesting in a stored config."""


def config_text(plain: Mapping[str, Any]) -> str:
    """Format a config as YAML; texts that some YAML readers would take for numbers are quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """PyYAML's safe dumper with the quoting rule below."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar(
            "tag:yaml.org,2002:str", value, style="'" if NUMBER_LIKE.fullmatch(value) else None
        )

    Dumper.add_representer(str, text)
    return yaml.dump(dict(plain), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def stored_config(folder: Path) -> dict[str, Any]:
    """Read ``config.yaml`` of a run's folder as plain values; interpolations in its texts are not resolved.

    Raises:
        UserError: for a file that is missing, no regular file, too large, not a mapping, not YAML, nested too deep, or YAML
            with aliases: rlrt writes none, and a few lines of aliases can expand to gigabytes.
    """
    import yaml

    file = folder / "config.yaml"
    try:
        text = read_text(file, LARGEST_CONFIG)
        refuse_bombs(text)
        plain = yaml.load(text, Loader=loader())
        if not isinstance(plain, dict):
            raise ValueError(f"expected a mapping, found a {type(plain).__name__}")
        return {str(k): data(v) for k, v in plain.items()}
    except Unreadable as error:
        reason = str(error).removeprefix(f"{file} cannot be read").strip(": ().")
    except FileNotFoundError:
        reason = "there is no such file"
    except Exception as error:  # YAML raises many types
        reason = " ".join(str(error).split())[:160] or type(error).__name__
    raise UserError(f"{file} cannot be read as a run's config: {reason}.")


def loader() -> Any:
    """Return PyYAML's safe loader: the one over libyaml where it was built with that, which takes a tenth of the time."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_bombs(text: str) -> None:
    """Raise ValueError for YAML with aliases, or nested deeper than ``DEEPEST`` levels; nothing is built for that."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=loader()):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it holds an alias")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"expected at most {DEEPEST} levels of nesting")


def data(value: Any) -> Any:
    """Return a value of a stored config, keys as text; raise ValueError for one that JSON has not: a date, bytes, a set."""
    if isinstance(value, dict):
        return {str(k): data(v) for k, v in value.items()}
    if isinstance(value, list):
        return [data(v) for v in value]
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("a text in it holds half a character")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("expected whole numbers of 64 bits")
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise ValueError(f"expected texts, numbers, true, false and null, found a {type(value).__name__}")
    return value
