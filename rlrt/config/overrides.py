"""The grammar of Hydra's overrides: how values are written."""

from __future__ import annotations

import re
from typing import Any

from rlrt.errors import UserError

PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Pattern of a key that needs no quoting in Hydra's grammar."""


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
