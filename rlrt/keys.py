"""Declaration of config keys: type, meaning, unit and range of each key. The YAML files hold the defaults."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlrt.errors import UserError, nearest, shown

LARGEST = 2**31 - 1
"""Largest whole number that a config may contain."""


FLOAT32 = (1e-37, 1e38)
"""Numbers that a 32-bit float holds, in size: what is computed with one that it does not hold is 0, infinite or NaN."""


def key(
    meaning: str,
    unit: str = "",
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """Declare a config key: a dataclass field without a default.

    Args:
        meaning: one line of documentation.
        unit: unit of the value, empty for a pure number or a name.
        above, least, most: open lower, closed lower and closed upper bound.
        choices: the allowed names, for a string.
    """
    limits = {"above": above, "least": least, "most": most, "choices": tuple(choices)}
    return dataclasses.field(metadata={"meaning": meaning, "unit": unit, **limits})


def finite(value: float) -> bool:
    """True for every whole number, also one that is too large for a float, and for a float that is neither infinite nor NaN."""
    return isinstance(value, int) or math.isfinite(value)


def check_ranges(section: Any, path: str) -> None:
    """Refuse values outside the range or choices that their ``key`` declares.

    Args:
        section: a dataclass instance whose fields were declared with ``key``.
        path: the dotted name of the section, for the message.

    Raises:
        UserError: naming the key in full, what was expected and what came.
    """
    for field in dataclasses.fields(section):
        value, limits = getattr(section, field.name), field.metadata
        if value is None or "meaning" not in limits:
            continue
        name = f"{path}.{field.name}" if path else field.name
        if limits["choices"] and value not in limits["choices"]:
            hint = nearest(str(value)[:99], limits["choices"])
            raise UserError(f"{name}: expected one of {', '.join(limits['choices'])}, got {shown(value)}.{hint}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not finite(value):
            raise UserError(f"{name}: expected a finite number, got {value}.")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{name}: expected a whole number of at most {LARGEST}, got {shown(value)}.")
        if abs(value) > FLOAT32[1] or (limits["above"] == 0 and 0 < value < FLOAT32[0]):
            raise UserError(f"{name}: expected a number from {FLOAT32[0]:g} to {FLOAT32[1]:g} in size, got {value:g}.")
        for bound, wrong, relation in (
            ("above", lambda v, b: v <= b, "above"),
            ("least", lambda v, b: v < b, "of at least"),
            ("most", lambda v, b: v > b, "of at most"),
        ):
            limit = limits[bound]
            if limit is not None and wrong(value, limit):
                raise UserError(f"{name}: expected a number {relation} {limit:g}, got {value:g}.")


def leaves(plain: Mapping[str, Any], prefix: str = "", keep_empty: bool = False) -> dict[str, Any]:
    """Flatten nested plain values to a dict by dotted names (``train.lr``).

    Args:
        prefix: put in front of every name.
        keep_empty: keep a section without keys as a value.
    """
    values: dict[str, Any] = {}
    for name, value in plain.items():
        full = f"{prefix}{name}"
        section = isinstance(value, dict) and (value or not keep_empty)
        values |= leaves(value, full + ".", keep_empty) if section else {full: value}
    return values


@functools.cache
def with_defaults(cls: type, base: type) -> type:
    """A class with the defaults of ``base`` (``Task``, or ``Engine``) where it has nothing of its own; itself if it has
    them."""
    if issubclass(cls, base):
        return cls
    return type(cls.__name__, (cls, base), {"__module__": cls.__module__, "__doc__": cls.__doc__})
