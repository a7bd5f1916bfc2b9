"""Write the table of docs/verifiers.md: ``python -m tests.verifiers.pages``."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "verifiers.md"
MARK = "## The table\n"


def page(pairs) -> str:
    """Return the table's section of the page."""
    kinds = list(dict.fromkeys(p["kind"] for p in pairs))
    lines = [MARK, f"{len(pairs)} pairs of {len(kinds)} kinds; each is a test (`tests/verifiers/pairs.jsonl`).", ""]
    for kind in kinds:
        rows = [p for p in pairs if p["kind"] == kind]
        lines += [f"### {kind.capitalize()}", "", "| expected | given | equal |", "|---|---|---|"]
        lines += [f"| {code(p['expected'])} | {code(p['given'])} | {'yes' if p['equal'] else 'no'} |" for p in rows]
        lines.append("")
    return "\n".join(lines)


def code(text: str) -> str:
    """Return a text as code in a cell of a table."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", "\\|")


if __name__ == "__main__":
    table = page([json.loads(line) for line in (HERE / "pairs.jsonl").read_text(encoding="utf-8").splitlines()])
    before = DOCS.read_text(encoding="utf-8").partition(MARK)[0]
    DOCS.write_text(before + table, encoding="utf-8")
