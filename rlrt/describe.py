"""List every key of a config with its type, default, unit and meaning, in Markdown.

``python -m rlrt.describe [overrides]`` lists the keys of one composed config; ``--all`` adds the keys that only other
methods, data sets and engines have, and gives docs/keys.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Sequence
from typing import Any

from rlrt.config.compose import composed, composer
from rlrt.config.load import load
from rlrt.config.refused import guarded
from rlrt.config.schema import SECTIONS, Settings, Top
from rlrt.paths import CONFIG
from rlrt.records.secrets import redacted
from rlrt.records.streams import mask_streams
from rlrt.sweep.jobs import plain
from rlrt.sweep.settings import LAUNCHERS, GridKeys, RaceKeys, SearchKeys
from rlrt.tasks.benchmark import Benchmark


def type_name(hint: Any) -> str:
    """Return a type's name in YAML terms."""
    return getattr(hint, "__name__", str(hint)).replace("NoneType", "null").replace("None", "null")


def rows_of(cls: type, prefix: str, values: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (key, type or choices, default, meaning with unit) of every key that a class declares and a section has."""
    hints, rows = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if not field.init or field.name not in values:
            continue
        about = field.metadata
        kind = " / ".join(about["choices"]) if about["choices"] else type_name(hints[field.name])
        unit = f" [{about['unit']}]" if about["unit"] else ""
        default = json.dumps(redacted(values[field.name], field.name), ensure_ascii=False)
        rows.append((f"{prefix}{field.name}", kind, default, about["meaning"] + unit))
    return rows


def sections(settings: Settings) -> dict[str, list[tuple[str, str, str, str]]]:
    """Return the rows of each section by its heading."""
    plain = settings.plain
    rows = {"top level": rows_of(Top, "", plain)}
    for name, cls in SECTIONS.items():
        rows[name] = rows_of(cls, f"{name}.", plain[name])
    for name in ("data", "engine"):
        rows[name] = rows_of(type(getattr(settings, name)), f"{name}.", plain[name])
    method = [row for s in settings.method.slots().values() for row in rows_of(type(s), "method.", plain["method"])]
    rows["method"] = list(dict.fromkeys(method))
    return rows


NEEDED = {
    "file": ["data.path=FILE"],
    "reasoning_gym": ["data.task=chain_sum"],
    "mixture": ["+data@data.sources.a=countdown"],
}
"""Values for keys without a default, so that the config composes."""
Row = tuple[str, str, str, str]
ORCHESTRATION = {"launcher": LAUNCHERS, "sweeper": {"grid": GridKeys, "optuna": SearchKeys, "race": RaceKeys}}
"""Sections that only ``-m`` reads."""


def rendered(heading: str, rows: Sequence[Row]) -> str:
    """Format a heading and its table."""
    lines = [f"## {heading}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def page(overrides: Sequence[str]) -> str:
    """Format the tables of one composed config."""
    tables = sections(load(composed(overrides)))
    return "\n\n".join(rendered(heading, rows) for heading, rows in tables.items()) + "\n"


def full_page() -> str:
    """Format the default config's tables, and the keys that only other methods, data sets and engines have."""
    parts, seen = ["# Every key", page([]).rstrip("\n")], set[str]()
    for rows in sections(load(composed([]))).values():
        seen |= {row[0] for row in rows}
    for group in ("method", "data", "engine"):
        # what builds on another option comes after it, so that a key stands under the option that it belongs to
        files = sorted((CONFIG / group).glob("[!_]*.yaml"), key=lambda p: ("\ndefaults:" in p.read_text(), p.stem))
        for option in (p.stem for p in files):
            if option == "custom":  # its keys depend on the user's class
                continue
            needed = NEEDED.get(option, [])
            rows = [r for r in sections(load(composed([f"{group}={option}", *needed])))[group] if r[0] not in seen]
            seen |= {row[0] for row in rows}
            if rows:
                parts.append(rendered(f"{group}, under {group}={option}", rows))
    suite = load(composed(["eval=aime24"])).plain["eval"]["suites"]["aime24"]
    parts.append(
        rendered("eval.suites, under eval=aime24 and the like", rows_of(Benchmark, "eval.suites.aime24.", suite))
    )
    with composer() as compose:
        for section, options in ORCHESTRATION.items():
            for option, cls in options.items():
                values = plain(compose([f"hydra/{section}={option}"]).hydra[section])
                prefix = f"hydra.{section}."
                parts.append(rendered(f"hydra.{section}, under hydra/{section}={option}", rows_of(cls, prefix, values)))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Print the tables of the config that the overrides compose to."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.describe", description=main.__doc__)
    parser.add_argument("overrides", nargs="*", help="as for rlrt.run, for example method=sd")
    parser.add_argument("--all", action="store_true", help="every method's, data set's and engine's keys")
    options = parser.parse_args()
    sys.exit(guarded(lambda: print(full_page() if options.all else page(options.overrides), end=""), options.overrides))


if __name__ == "__main__":
    main()
