"""A row's cell as text: nested columns, numbers, chat messages. What is not understood is named by its type."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

ASKS = ("user", "human")
ANSWERS = ("assistant", "gpt", "model")
"""Roles of chat messages, in the two spellings that data sets have."""
MISSING = object()
"""The value of a column that a row lacks."""
EXACT_FLOAT = 2**53
"""Up to here a float is exactly one whole number."""
SHOWN = 60
"""Length of an example in messages."""


class NotUnderstood(Exception):
    """A cell that is no text.

    Attributes:
        kind: what it is, in words that follow "answer is".
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def field_of(row: Any, name: str) -> Any:
    """Return a row's field: the column of that name, or else what its dots lead to; ``MISSING`` if it has neither.

    A column's own name may have dots, at any depth; a number counts the entries of a list from 0. A text that is a JSON object
    or list, as CSV has them, counts as one.
    """
    row = from_json_text(row)
    if isinstance(row, list):
        head, _, rest = name.partition(".")
        if not head.isdigit() or int(head) >= len(row):
            return MISSING
        return field_of(row[int(head)], rest) if rest else row[int(head)]
    if not isinstance(row, Mapping):
        return MISSING
    if name in row:
        return row[name]
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:count])
        if head in row:
            value = field_of(row[head], ".".join(parts[count:]))
            if value is not MISSING:
                return value
    return MISSING


def from_json_text(value: Any) -> Any:
    """Return what a text that is a JSON object or list stands for; any other value as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "[") and value.strip()[-1:] in ("}", "]"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def columns_of(row: Mapping[str, Any], depth: int = 3) -> list[str]:
    """Return the names of a row's columns, and of those inside nested ones."""
    names = []
    for name, value in row.items():
        names.append(shown_name(str(name)))
        if isinstance(value, Mapping) and depth > 1:
            names += [f"{name}.{inner}" for inner in columns_of(value, depth - 1)]
    return names


def shown_name(name: str) -> str:
    """Return a column's name for a message, on one line and not too long."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= SHOWN else name[: SHOWN - 3] + "..."


def text_of(value: Any, roles: tuple[str, ...]) -> str:
    """Return a cell as trimmed text; empty for an empty cell.

    Args:
        value: of the cell. Of chat messages the last one of ``roles`` counts, of a list of one value that value.
        roles: whose words are meant.

    Raises:
        NotUnderstood: for anything else.
    """
    if value is None or value is MISSING or value != value:  # NaN
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise NotUnderstood("bytes") from None
    if isinstance(value, str):
        inside = from_json_text(value)
        chat = isinstance(inside, list) and inside and all(is_message(m) for m in inside)
        return words_of(inside, roles) if chat else whole_characters(value)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return number_text(value)
    if is_message(value):
        return text_of([value], roles)
    if isinstance(value, list):
        if not value:
            return ""
        if all(is_message(m) for m in value):
            return words_of(value, roles)
        if len(value) == 1:
            return text_of(value[0], roles)
    raise NotUnderstood(type_name(value))


def whole_characters(text: str) -> str:
    """Return trimmed text.

    Raises:
        NotUnderstood: for a lone surrogate, which no tokenizer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotUnderstood("text with half a character (a lone surrogate)") from None
    return text.strip()


def number_text(value: int | float | Decimal) -> str:
    """Return a number as it is written; a whole one without decimals, since a table with an empty cell makes 25 to 25.0."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise NotUnderstood("an infinite number")
    if value == int(value) and (isinstance(value, Decimal) or abs(value) <= EXACT_FLOAT):
        return str(int(value))
    return f"{value:f}" if isinstance(value, Decimal) else repr(value)


def is_message(value: Any) -> bool:
    """True for a chat message, ``role`` and ``content`` or ``from`` and ``value``."""
    return isinstance(value, Mapping) and (
        ("role" in value and "content" in value) or {"from", "value"} <= value.keys()
    )


def words_of(messages: list[Any], roles: tuple[str, ...]) -> str:
    """Return the text of the last message of one of the roles.

    Raises:
        NotUnderstood: if there is none, or if it holds more than text.
    """
    theirs = [m.get("content", m.get("value")) for m in messages if m.get("role", m.get("from")) in roles]
    if not theirs:
        raise NotUnderstood(f"chat messages, none of role {roles[0]}")
    content = theirs[-1]
    if not isinstance(content, list):
        return text_of(content, roles)
    parts = [{"text": part} if isinstance(part, str) else part for part in content]
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type_name(part)
            raise NotUnderstood(f"a message with a part that is no text ({kind})")
    return whole_characters("\n".join(part["text"] for part in parts))


def type_name(value: Any) -> str:
    """Return a type in words that a person who made the file knows."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, list):
        return "a list of several values"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (datetime.date, datetime.time)):
        return "a date or time"
    return f"of type {type(value).__name__}"


def example_of(value: Any) -> str:
    """Return a cell as a short example for a message, on one line."""
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."
