"""A run's ``config.yaml``: written so that every reader takes it back, read as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError

NUMBER_LIKE = re.compile(r"[-+]?(\d[\d_]*)?\.?\d*([eE][-+]?\d+)?")
"""Texts that YAML 1.1 or 1.2 may take for a number."""


LARGEST_CONFIG = 1_000_000
"""Characters of a stored config that are read."""


def config_text(plain: Mapping[str, Any]) -> str:
    """A config as YAML that every reader takes back as it is: texts that look like numbers to some of them are quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """With the rule for texts."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar(
            "tag:yaml.org,2002:str", value, style="'" if NUMBER_LIKE.fullmatch(value) else None
        )

    Dumper.add_representer(str, text)
    return yaml.dump(dict(plain), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def stored_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` of a run's folder as plain values: data, whose texts nothing resolves.

    Raises:
        UserError: for a file that is missing, larger than any config, no mapping, or no YAML, or YAML with aliases: rlrt writes
            none, and a few lines of them can stand for gigabytes.
    """
    import yaml

    file = folder / "config.yaml"
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"expected at most {LARGEST_CONFIG} characters, found {len(text)}")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it holds an alias")
        plain = yaml.safe_load(text)
        if not isinstance(plain, dict):
            raise ValueError(f"expected a mapping, found a {type(plain).__name__}")
    except Exception as error:  # YAML and the file system have many types for one cause
        said = " ".join(str(error).split())[:160]
        raise UserError(f"{file} cannot be read as a run's config: {said or type(error).__name__}.") from None
    return {str(k): v for k, v in plain.items()}
