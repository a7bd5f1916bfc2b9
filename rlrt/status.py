"""``python -m rlrt.status [SWEEP]``: every job of a sweep: state, step, last reward, where its log is."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from rlrt.errors import UserError
from rlrt.folder import read_json
from rlrt.sweep.driver import slurm_aware
from rlrt.sweep.launchers import slurm_states
from rlrt.sweep.lease import held, holder
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import job_folders, last_record, planned_steps
from rlrt.sweep.table import table

SWEEPS = Path("outputs/sweeps")


def sweep_folder(given: Path | None) -> Path:
    """The folder asked for, or the sweep that was touched last.

    Raises:
        UserError: if there is none, or it holds no jobs.
    """
    if given is None:
        found = [p for p in SWEEPS.glob("*") if job_folders(p)]
        if not found:
            raise UserError(f"expected a sweep in {SWEEPS}, found none; give its folder.")
        return max(found, key=lambda p: p.stat().st_mtime)
    named = given if given.is_dir() else SWEEPS / given
    if not job_folders(named):
        raise UserError(f"expected the folder of a sweep (with */{SPEC}), found none in {given}.")
    return named


def status(sweep: Path) -> str:
    """The table, the counts, what failed and where to look."""
    folders = job_folders(sweep)
    ids = [str(i) for f in folders if (i := read_json(f / SPEC).get("slurm_id"))]
    known = dict(slurm_states(ids)) if ids else {}
    states = {f: slurm_aware(f, known) for f in folders}
    rows = [(f.name, state, last_record(f), planned_steps(f)) for f, state in states.items()]
    counts = Counter(state.name for state in states.values())
    lines = [table(rows), ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))]
    if held(sweep / "driver"):
        who = holder(sweep / "driver")
        lines.append(f"driven by pid {who.get('pid')} on {who.get('host')}")
    for folder, state in states.items():
        if state.name in ("failed", "lost"):
            lines.append(f"{state.name}: {folder.name}: {state.error or 'its process was killed'}")
    lines.append(f"logs: {sweep}/JOB/log.txt")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m rlrt.status", description=main.__doc__)
    parser.add_argument("sweep", type=Path, nargs="?", help="folder or name; the newest one otherwise")
    arguments = parser.parse_args()
    try:
        print(status(sweep_folder(arguments.sweep)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
