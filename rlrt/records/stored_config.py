"""A run's ``config.yaml``: written so that every YAML reader gets the same values, and read as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError

NUMBER_LIKE = re.compile(r"[-+]?(\d[\d_]*)?\.?\d*([eE][-+]?\d+)?")
"""A text of this form may be read as a number by YAML 1.1 or 1.2."""
LARGEST_CONFIG = 1_000_000
"""A stored config may have at most this many characters."""


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
        UserError: for a file that is missing, too large, not a mapping, not YAML, or YAML with aliases: rlrt writes none, and a
            few lines of aliases can expand to gigabytes.
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
    except Exception as error:  # YAML and the file system raise many types
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{file} cannot be read as a run's config: {reason or type(error).__name__}.") from None
    return {str(k): v for k, v in plain.items()}
