"""Values and configs as Hydra's overrides name and spell them."""

from __future__ import annotations

import re
from typing import Any

from rlrt.errors import UserError

PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""A key that means itself in Hydra's grammar."""


def grammar(value: Any) -> str:
    """A value in Hydra's override grammar, where a backslash counts as one only before a quote or at the end.

    Raises:
        UserError: for a mapping with a key that the grammar cannot quote: written raw it would be read as something else.
    """
    if isinstance(value, str):
        text = re.sub(
            r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", value
        )  # OmegaConf's own escape: the text, no interpolation
        quoted = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", text)
        return "'" + re.sub(r"\\+$", lambda m: m[0] * 2, quoted) + "'"
    if isinstance(value, list):
        return "[" + ",".join(map(grammar, value)) + "]"
    if isinstance(value, dict):
        for name in value:
            if not PLAIN_KEY.fullmatch(str(name)):
                raise UserError(
                    f"expected keys of letters, digits and _ in a mapping that is given again, got {str(name)!r:.60}."
                )
        return "{" + ",".join(f"{k}:{grammar(v)}" for k, v in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
