"""``python -m rlrt.runs [FOLDER ...]``: every run here, one line each; kept by config keys, sorted by a metric; two compared.

``--where KEY=VALUE`` takes keys and values as ``rlrt.run`` does. States come from the folders alone; ``rlrt.status`` also asks
SLURM. ``--diff RUN RUN`` says what differs between two runs, down to the first step whose records do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlrt.config.overrides import read_back
from rlrt.config.refused import guarded
from rlrt.errors import UserError, shown
from rlrt.records.printable import one_line
from rlrt.records.streams import mask_streams
from rlrt.reporting import runs
from rlrt.reporting.difference import difference, side
from rlrt.reporting.terminal import count, say, table

OUTPUTS = Path("outputs")
"""Where runs lie unless another folder is named."""
WIDE = 160
"""Characters of a line that goes to no terminal."""
MOST_WARNINGS = 5


class Warnings:
    """Sentences about what was left out, on standard error: a few, then their number."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, sentence: str) -> None:
        """Say what was left out, and why."""
        self._count += 1
        if self._count <= MOST_WARNINGS:
            print(one_line(f"warning: left out: {sentence}"), file=sys.stderr)

    def end(self) -> None:
        """Say how many more there were."""
        if self._count > MOST_WARNINGS:
            print(f"warning: left out: {self._count - MOST_WARNINGS} more that cannot be read", file=sys.stderr)


def conditions(typed: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the name and the value of each ``KEY=VALUE``, read as ``rlrt.run`` reads them.

    Raises:
        UserError: for one without a key or a sign.
    """
    pairs = []
    for text in typed:
        name, sign, value = text.partition("=")
        if not sign or not name.lstrip("+"):
            raise UserError(f"--where {shown(text)}: expected KEY=VALUE, as for rlrt.run.")
        read = read_back(value)
        pairs.append((name.lstrip("+"), value if read is None and value.strip() != "null" else read))
    return pairs


def places(typed: Sequence[Path]) -> list[Path]:
    """Return the folders that are searched: those that are named, by path, or as sweeps by name or by the end of it."""
    found = []
    for place in typed:
        sweeps = [] if place.is_dir() else [p for p in (OUTPUTS / "sweeps").glob("*") if p.name.endswith(str(place))]
        found += sweeps or [place]
    return found or [OUTPUTS]


def one_run(name: str) -> Path:
    """Return the folder of a run, given by path, by name below ``outputs``, or by the end of its name: its identity.

    Raises:
        UserError: for none, and for several.
    """
    if Path(name).is_dir():
        return Path(name)
    folders = runs.folders_of([OUTPUTS]) if OUTPUTS.is_dir() else []
    exact = [f for f in folders if name in (f.name, f"{f.parent.name}/{f.name}")]
    found = exact or [f for f in folders if len(name) >= 4 and f.name.endswith(name)]
    if len(found) != 1:
        listed = ", ".join(one_line(f, 200) for f in found[:3]) + (" ..." if len(found) > 3 else "") or "none"
        raise UserError(f"--diff {one_line(name, 200)}: expected one run's folder, name or identity, found {listed}.")
    return found[0]


def listing(arguments: argparse.Namespace, warn: Callable[[str], None]) -> str:
    """Return the table of runs, or their JSON.

    Raises:
        UserError: for a folder without runs, and for a key or a metric that none of them has.
    """
    where = conditions(arguments.where)
    asked = [name.strip() for name in (arguments.columns or "").split(",") if name.strip()]
    sort = [arguments.sort] if arguments.sort else []
    config = any(map(runs.needs_config, [*sort, *asked, *(name for name, _ in where)]))
    every = runs.newest_first(runs.folders_of(places(arguments.folders)), warn)
    chosen = runs.kept(every, where, arguments.last, config, warn)
    runs.refuse_unknown(chosen, sort, "--sort")
    runs.refuse_unknown(chosen, asked, "--columns")
    for name in sort:
        chosen = runs.ordered(chosen, name, arguments.descending)
    if arguments.json:
        return json.dumps([runs.plain(run, [*asked, *sort]) for run in chosen], indent=1)
    return formatted(chosen, ("name", *asked) if asked else runs.COLUMNS, sort, len(every))


def formatted(chosen: Sequence[runs.Run], columns: Sequence[str], sort: Sequence[str], every: int) -> str:
    """Format runs as a table that fits the terminal, and say of how many they are."""
    counted = f"{len(chosen)} of {every} runs" if len(chosen) < every else f"{every} run{'s' * (every != 1)}"
    if not chosen:
        return f"{counted}: none has all these values"
    there = {*columns, *(runs.metric_of(runs.heading(name, chosen)) for name in columns)}
    more = [name for name in sort if name not in there and runs.metric_of(name) not in there]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    rows, shared = runs.rows(chosen, [*columns, *more], width, fold=columns is runs.COLUMNS)
    words = sum(heading in ("name", *runs.COMMON) for heading in rows[0]) if columns is runs.COLUMNS else 1
    return f"{table(rows, left=words)}\n{counted}" + (f"; all of them: {', '.join(shared)}" if shared else "")


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(prog="python -m rlrt.runs", description=main.__doc__)
    made.add_argument(
        "folders", type=Path, nargs="*", metavar="FOLDER", help="of runs, sweeps or one run (default: outputs)"
    )
    made.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with this value, typed as for rlrt.run: method=rlrt, train.lr=1e-3; also state=failed; repeatable",
    )
    made.add_argument(
        "--sort",
        metavar="NAME",
        help="a final metric (avg@8, eval/greedy), a column or a key; the newest first otherwise",
    )
    made.add_argument(
        "--descending", action="store_true", help="the largest first; runs without a value come last either way"
    )
    made.add_argument(
        "--columns",
        metavar="NAME,...",
        help="keys, metrics and columns to show beside the name; also: " + ", ".join(runs.OTHERS),
    )
    made.add_argument("--last", type=count, metavar="N", help="the N newest of those that match")
    made.add_argument("--json", action="store_true", help="plain values with all final metrics, for other programs")
    made.add_argument(
        "--diff",
        nargs=2,
        metavar="RUN",
        help="what differs between two runs, each a folder, a name, or the identity at its end",
    )
    return made


def main() -> None:
    """List runs, or compare two of them."""
    mask_streams()
    arguments = parser().parse_args()
    warn = Warnings()

    def act() -> None:
        if arguments.diff:
            say(difference(*(side(one_run(name)) for name in arguments.diff)))
        else:
            say(listing(arguments, warn))
            warn.end()

    sys.exit(guarded(act))


if __name__ == "__main__":
    main()
