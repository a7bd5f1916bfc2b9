"""``python -m tests.kills [--kills 20] [--log FILE]``: every method, killed at 20 seeded moments (``make torture``)."""

from __future__ import annotations

import argparse
import datetime
import functools
import multiprocessing
import tempfile
import time
from pathlib import Path

import torch

from rlrt.records.manifest import cpu_name
from tests.helpers import METHODS
from tests.kills.lives import torture, uninterrupted
from tests.kills.page import put


def main() -> None:
    """Run the matrix, print a line for every kill, and write the log."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=main.__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of every method")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--workers", type=int, default=2, help="methods at a time; every life has one thread")
    parser.add_argument("--log", type=Path, default=Path("docs/torture.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place, multiprocessing.get_context("fork").Pool(arguments.workers) as pool:
        of_method = functools.partial(rows_of, kills=arguments.kills, place=Path(place))
        rows = [row for found in pool.imap(of_method, arguments.methods, chunksize=1) for row in found]
    equal = sum(row.endswith("| equal |") for row in rows)
    head = [
        "# Kills",
        "",
        f"`make torture`, {datetime.date.today()}, {cpu_name()}, torch {torch.__version__}, {arguments.workers} processes of "
        f"one thread, {(time.monotonic() - begin) / 60:.0f} min. Every row is a run of 6 steps, killed as told (SIGKILL; "
        "SIGXFSZ in the middle of a write), started again, and compared with an uninterrupted one: record, samples, summary, "
        f"and every file of every checkpoint, byte for byte. **{equal} of {len(rows)} are equal.**",
        "",
        "| method | kill | moment and signal | end |",
        "|---|---|---|---|",
    ]
    put(arguments.log, head[0], [*head, *rows])
    raise SystemExit(int(equal < len(rows)))


def rows_of(method: str, kills: int, place: Path) -> list[str]:
    """A method's rows, each printed when it is known."""
    whole, rows = uninterrupted(method, place / method), []
    for number in range(kills):
        try:
            told, verdict = torture(method, number, place / f"{method}-{number}", whole), "equal"
        except AssertionError as error:
            told, verdict = str(error), "DIFFERS"
        rows.append(f"| {method} | {number} | {told} | {verdict} |")
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
