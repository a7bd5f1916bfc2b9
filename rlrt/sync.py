"""``python -m rlrt.sync [FOLDER]``: send to MLflow what it missed, from the records in the runs' folders."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

from rlrt.errors import UserError
from rlrt.records.files import is_file, named_below, read_json
from rlrt.records.lease import LEASE, LeaseTaken, is_held
from rlrt.records.printable import one_line
from rlrt.records.secrets import to_terminal
from rlrt.records.storage import storing
from rlrt.records.streams import mask_streams
from rlrt.sweep.parent import bring, bring_sweep, incomplete_sweeps

COPIES = re.compile(r"[0-9a-f]{32}")
"""Name of the folder that MLflow gives the artifacts of a run."""


def incomplete(root: Path) -> list[Path]:
    """List the folders of runs that are not running and whose records are not complete in MLflow."""
    folders = []
    for summary in named_below(root, "summary.json"):
        folder = summary.parent
        if folder.name == "artifacts" and COPIES.fullmatch(folder.parent.name):
            continue  # MLflow's copy of a run's papers
        missed = read_json(summary).get("mlflow_complete") is not True and is_file(folder / "config.yaml")
        if missed and not is_held(folder / LEASE):
            folders.append(folder)
    return folders


def main() -> None:
    """Send every run that is incomplete in MLflow; the exit code is 1 if MLflow failed again."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.sync", description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs"))
    parser.add_argument("--uri", help="tracking URI to use instead of the runs' own")
    parser.add_argument("--trust", action="store_true", help="the runs' servers may get this environment's credentials")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])
    if not arguments.folder.is_dir():
        print(f"error: expected a folder of runs, got {arguments.folder}.", file=sys.stderr)
        raise SystemExit(2)
    folders = incomplete(arguments.folder)
    steps = [(folder, bring) for folder in folders] + [
        (sweep, bring_sweep) for sweep in incomplete_sweeps(arguments.folder)
    ]
    done = 0
    for folder, send in steps:
        try:
            with storing(folder):
                done += send(folder, arguments.uri, arguments.trust)
        except UserError as error:
            where = "" if str(folder) in str(error) else f"{folder}: "
            print(f"error: {one_line(f'{where}{error}')}", file=sys.stderr)
        except OSError as error:
            print(
                f"error: {one_line(f'{folder} cannot be written ({error.strerror}: {error.filename})')}.",
                file=sys.stderr,
            )
        except LeaseTaken:
            print(f"{one_line(folder)} is running again and sends its records to MLflow itself", file=sys.stderr)
            done += 1
    print(f"{done} of {len(steps)} runs that were incomplete in MLflow are complete now")
    raise SystemExit(int(done < len(steps)))


if __name__ == "__main__":
    main()
