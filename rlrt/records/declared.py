"""The curves, ablations and tags that a run's method declared, read from the run's manifest as untrusted data.

Texts of the manifest are displayed and never evaluated. A method's slots declare them with the classes of
``rlrt.methods.declared``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlrt.records.files import mapping

MOST = 20
"""At most this many declarations of each kind are read."""
LONGEST = 120
"""A text in a declaration may have at most this many characters."""
BEFORE: Mapping[str, Any] = {
    "curves": [
        {"metric": "rlrt/gap_mean", "name": "D", "axis": "mean gap D on correct rollouts with a teacher, nats"},
        {
            "metric": "rlrt/weight_clipped_share",
            "name": "clipping",
            "axis": "clipped weights, share of tokens",
            "low": 0.0,
            "high": 1.0,
        },
    ],
    "ablations": [
        {
            "x": "lambda_init",
            "by": "epsilon_w",
            "x_label": "reversed-teacher coefficient lam (0: GRPO)",
            "by_label": "eps_w",
            "where": {"gate": "correct", "direction": "reversed"},
        }
    ],
    "tags": {"rlrt.lambda": "lambda_init"},
}
"""Declarations assumed for runs recorded before methods declared any (November 2026): what every report then drew."""


@dataclass(frozen=True)
class Declared:
    """A run's declarations, in the form that ``rlrt.methods.declared`` describes.

    Attributes:
        curves: each has metric, name, axis, low, high.
        ablations: each has x, by, x_label, by_label, where.
        tags: name of an MLflow tag to the key of ``method`` whose value it shows.
    """

    curves: Sequence[Mapping[str, Any]] = field(default_factory=list)
    ablations: Sequence[Mapping[str, Any]] = field(default_factory=list)
    tags: Mapping[str, str] = field(default_factory=dict)


def declared(manifest: Mapping[str, Any]) -> Declared:
    """Read the declarations of a manifest; entries of another form are ignored."""
    stored = manifest.get("declared", BEFORE)
    stored = stored if isinstance(stored, Mapping) else {}
    tags = {k: v for k, v in mapping(stored.get("tags")).items() if is_text(k) and is_text(v)}
    return Declared(
        curves=[
            c
            for c in entries(stored.get("curves"), ("metric", "name", "axis"))
            if re.fullmatch("[A-Za-z0-9]{1,40}", c["name"])
        ],
        ablations=entries(stored.get("ablations"), ("x", "by", "x_label", "by_label")),
        tags=dict(list(tags.items())[:MOST]),
    )


def entries(value: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the mappings of a list that have a valid text under each name of ``texts``."""
    items = value if isinstance(value, list) else []
    return [item for item in items[:MOST] if isinstance(item, dict) and all(is_text(item.get(name)) for name in texts)]


def is_text(value: Any) -> bool:
    """True for a printable text of at most ``LONGEST`` characters without ``$``, which matplotlib would interpret."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable() and "$" not in value
