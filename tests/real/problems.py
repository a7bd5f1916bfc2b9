"""Word problems that SmolLM2-135M solves about every other time at temperature 1, and how it is asked them."""

from __future__ import annotations

import json
from pathlib import Path

NAMES = ("Ann", "Ben", "Eve", "Joe", "Kim", "Lea")
THINGS = ("pens", "cups", "keys", "hats", "eggs", "nuts")
NUMBERS = ((2, 3), (4, 1), (5, 5), (6, 2))
ASKED = (
    "model.examples=2",
    "data.examples=["
    "{question: 'Tom has 3 balls and gets 4 more. How many balls has Tom now?', answer: '3 + 4 = 7'},"
    "{question: 'Mia has 1 cats and gets 2 more. How many cats has Mia now?', answer: '1 + 2 = 3'}]",
)
"""Overrides: two worked examples in the problems' own words."""


def problems(folder: Path) -> Path:
    """Write 24 problems in the form of MAWPS, with a solution in other words than the model's; returns the folder."""
    rows = [
        {
            "input": f"{name} has {a} {thing} and gets {b} more. How many {thing} has {name} now?",
            "target": float(a + b),
            "solution": f"{a} and {b} more are {a + b}",
        }
        for name, thing in zip(NAMES, THINGS, strict=True)
        for a, b in NUMBERS
    ]
    (folder / "mawps_addsub.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
