"""``python -m rlrt.analyze RUN [RUN ...] [overrides]``: analyse how training changed the policies, as CSV and figures.

The analyses are pass@k of the initial model and the last checkpoint, the distribution shift along rollouts on hard problems,
over all checkpoints rollouts continued anew at their most and least asymmetric positions (arXiv 2605.10781), and the gap D of
the same rollouts under several teacher contexts, with the kinds of tokens that carry it. Overrides change the runs' configs,
for example ``eval.prompts=64`` or ``eval.samples_per_prompt=32``.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rlrt.config.refused import guarded
from rlrt.config.rerun import add_reading, reading
from rlrt.errors import UserError, first_line
from rlrt.evaluation.asymmetry import CONTEXTS, contexts_of
from rlrt.evaluation.checkpoint import runs_of
from rlrt.evaluation.pictures import pictures, told_apart
from rlrt.evaluation.study import FOLDER, Findings, study, tables
from rlrt.execution.tracking import open_tracker, stored
from rlrt.records.files import own_folder, replace_text
from rlrt.records.folder import RunFolder
from rlrt.records.mlflow import status_of
from rlrt.records.printable import one_line
from rlrt.records.secrets import to_terminal
from rlrt.records.storage import storing
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import say


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write the tables as CSV files; return their paths."""
    own_folder(folder)
    files = []
    for name, (headings, rows) in tables(findings).items():
        file = folder / f"{name}.csv"
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([headings, *rows])
        replace_text(file, text.getvalue())
        files.append(file)
    return files


def to_mlflow(run: Path, files: Sequence[Path], trust: bool) -> None:
    """Send the files to the run's own MLflow run."""
    folder = RunFolder(run)
    tracker = open_tracker(stored(run, trust=trust), folder, run.name)
    if tracker is not None:
        for file in files:
            tracker.artifact(file, FOLDER)
        tracker.close(status_of(folder.summary().get("state")))


def named(typed: str) -> list[str]:
    """The contexts of ``--contexts``, each once.

    Raises:
        UserError: for one that there is not.
    """
    names = list(dict.fromkeys(name.strip() for name in typed.split(",") if name.strip()))
    if not names:
        raise UserError("--contexts: expected teacher contexts with commas between them, got none.")
    try:
        contexts_of(names)
    except ValueError as error:
        raise UserError(f"--contexts: {first_line(error)}.") from None
    return names


def main() -> None:
    """Analyse runs, or the finished runs of a sweep."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.analyze", description=main.__doc__)
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="RUN or override",
        help="folders of runs or sweeps; eval.prompts=64 and the like",
    )
    parser.add_argument(
        "--insert",
        default="",
        help="text inserted where a rollout is continued (Wait, let me reconsider.); default: none",
    )
    parser.add_argument(
        "--contexts",
        default=",".join(CONTEXTS),
        help="teacher contexts under which D is compared, as teacher.context takes them (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="folder of the figures (default: analysis/ beside the runs)")
    add_reading(parser)
    options = parser.parse_intermixed_args()
    how = reading(options)
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])
    typed = [a for a in options.arguments if "=" in a and not Path(a).is_dir()]

    def act() -> None:
        contexts = named(options.contexts)
        runs = runs_of([Path(a) for a in options.arguments if a not in typed])
        if not runs:
            raise UserError("expected at least one run's folder, got overrides alone.")
        all_findings = []
        for run in runs:
            with storing(run):
                findings = study(run, typed, options.insert, how, contexts)
                all_findings.append(findings)
                files = write(findings, run / FOLDER)
            to_mlflow(run, files, how.trust)
            found = f"{findings.hard} hard and {findings.easy} easy problems"
            say(one_line(f"{run}: {found}, {len(files)} tables in {run / FOLDER}"))
        out = options.out or runs[0].parent / FOLDER
        for picture in pictures(told_apart(all_findings)):
            picture.save(out)
        say(one_line(f"figures: {out}"))

    try:
        code = guarded(act, typed)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
