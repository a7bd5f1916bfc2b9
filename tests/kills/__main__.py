"""``python -m tests.kills [--kills 20] [--log FILE]``: every method, killed at 20 seeded moments (``make torture``)."""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from pathlib import Path

import torch

from rlrt.records.manifest import cpu_name
from tests.helpers import METHODS
from tests.kills.lives import torture, uninterrupted


def main() -> None:
    """Run the matrix, print a line for every kill, and write the log."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=main.__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--log", type=Path, default=Path("docs/torture.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin, rows, bad = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory() as place:
        for method in METHODS:
            whole = uninterrupted(method, Path(place) / method)
            for number in range(arguments.kills):
                try:
                    told = torture(method, number, Path(place) / f"{method}-{number}", whole)
                    verdict = "equal"
                except AssertionError as error:
                    told, verdict, bad = str(error), "DIFFERS", bad + 1
                rows.append(f"| {method} | {number} | {told} | {verdict} |")
                print(rows[-1], flush=True)
    head = [
        "# Kills",
        "",
        f"`make torture`, {datetime.date.today()}, {cpu_name()}, torch {torch.__version__}, one thread, "
        f"{(time.monotonic() - begin) / 60:.0f} min. Every row is a run of 6 steps, killed as told (SIGKILL; SIGXFSZ in "
        "the middle of a write), started again, and compared with an uninterrupted one: record, samples, summary, and every "
        f"file of every checkpoint, byte for byte. **{len(rows) - bad} of {len(rows)} are equal.**",
        "",
        "| method | kill | moment and signal | end |",
        "|---|---|---|---|",
    ]
    arguments.log.write_text("\n".join([*head, *rows]) + "\n")
    raise SystemExit(int(bad > 0))


if __name__ == "__main__":
    main()
