"""``python -m rlrt.scout [overrides]``: models x prompts x tasks side by side, before anything is trained.

Overrides are those of ``rlrt.run -m``, with the same axes (``model=a,b``, ``'model.prompt_template=choice(...)'``). Every
combination is evaluated as by ``rlrt.evaluate`` without a run, in one process, and lies in ``outputs/evaluations/``: what was
measured before is not measured again. The table and a page with samples to read lie in ``outputs/scouts/``.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rlrt.config.checks import check_installed
from rlrt.config.compose import composer
from rlrt.config.refused import guarded
from rlrt.config.rerun import TRUST, Reading, add_reading, expand, reading
from rlrt.errors import UserError, first_line
from rlrt.evaluation.checkpoint import Evaluation, of_config, texts_of
from rlrt.evaluation.kept import KeptModel, name_of
from rlrt.evaluation.results import carried_out
from rlrt.records.files import own_folder, replace_text
from rlrt.records.names import readable, sweep_hash
from rlrt.records.printable import one_line
from rlrt.records.secrets import redacted, to_terminal
from rlrt.records.streams import mask_streams
from rlrt.reporting.scouted import Cell, page, table_of, verdict, verdict_of
from rlrt.reporting.terminal import count, say, table
from rlrt.sweep.jobs import grid_planned, group_folders, plain
from rlrt.sweep.plan import of_the_whole

log = logging.getLogger("rlrt")
SCOUTS = Path("outputs/scouts")


def evaluations_of(overrides: Sequence[str], how: Reading) -> list[Evaluation]:
    """Return the evaluation of every combination of the axes, in the order of a sweep; all configs are checked.

    Raises:
        UserError: for a search, axes that cannot be combined, or a config that cannot work; nothing has been measured.
    """
    with composer(how.config_dirs) as compose:
        base = compose(of_the_whole(overrides))
        values = plain(base.hydra.sweeper)
        if values.pop("kind", None) != "grid":
            raise UserError("hydra/sweeper: a scout compares the combinations of a grid; leave hydra/sweeper out.")
        _, jobs = grid_planned(values, overrides, Path(), compose, group_folders(base))
    evaluations = []
    for job in jobs:
        try:
            evaluations.append(of_config(job.plain, job.choices, job.overrides))
            check_installed(evaluations[-1].settings)
        except UserError as error:
            raise UserError(f"{error} (in the cell {' '.join(job.overrides)})") from None
    return evaluations


def cells_of(evaluations: Sequence[Evaluation]) -> list[Cell]:
    """Return a cell for every evaluation, with the overrides that not all of them share."""
    typed = [redacted(list(evaluation.settings.overrides)) for evaluation in evaluations]
    common = set.intersection(*map(set, typed)) if len(typed) > 1 else set()
    return [
        Cell(
            {
                name.lstrip("+~"): value.replace("\n", "\\n")
                for name, _, value in (o.partition("=") for o in own if o not in common)
            },
            evaluation.settings.eval.samples_per_prompt,
            str(evaluation.folder),
        )
        for own, evaluation in zip(typed, evaluations, strict=True)
    ]


def scout(overrides: Sequence[str], how: Reading, show: int) -> int:
    """Measure every combination, and write and print what was found.

    Args:
        show: samples of each cell that are printed.

    Returns:
        the exit code: 2 if a combination could not be measured, 1 if one failed by an error that is not the user's.
    """
    typed = expand([*overrides, *([TRUST] if how.trust else [])], how.config_dirs)
    evaluations = evaluations_of(typed, how)
    cells = cells_of(evaluations)
    folder = own_folder(own_folder(SCOUTS) / f"{readable(overrides, 'scout')}-{sweep_hash(overrides)}")
    dirs = [word for path in how.config_dirs for word in ("--config-dir", path)]
    command = "python -m rlrt.scout " + shlex.join([*redacted(list(overrides)), *dirs, *[TRUST] * how.trust])
    models = list(dict.fromkeys(name_of(evaluation.settings) for evaluation in evaluations))
    order = sorted(range(len(cells)), key=lambda i: models.index(name_of(evaluations[i].settings)))
    kept = KeptModel()
    for done, i in enumerate(order, 1):
        cell = cells[i]
        named = one_line(" ".join(f"{key}={value}" for key, value in cell.values.items()), 100)
        say(f"{done}/{len(cells)} {named}")
        try:
            cell.results = carried_out(evaluations[i], lambda line: say(f"  {line}"), kept)
            cell.texts = texts_of(evaluations[i])
        except UserError as error:
            cell.error = str(error)
            print(one_line(f"error: cell {i + 1}: {error}"), file=sys.stderr)
        except OSError:  # a full disk and the like: no other cell could be written either
            raise
        except Exception as error:  # memory that ends, a task of the user's own: the other cells may do
            cell.error, cell.crashed = f"{type(error).__name__}: {first_line(error)}", True
            log.exception("cell %d", i + 1)
        write(folder, command, cells)  # a page of what is there, if the command is stopped
    tell(folder, cells, show)
    return 1 if any(cell.crashed for cell in cells) else 2 if any(cell.error for cell in cells) else 0


def write(folder: Path, command: str, cells: Sequence[Cell]) -> None:
    """Write ``scout.html``, ``scout.csv`` and ``scout.md``."""
    data = table_of(cells)
    replace_text(folder / "scout.csv", data.csv())
    replace_text(folder / "scout.md", f"{data.markdown()}\n\n{verdict(cells)}\n")
    replace_text(folder / "scout.html", page(folder.name, command, cells))


def tell(folder: Path, cells: Sequence[Cell], show: int) -> None:
    """Print a few samples of every cell, the table, and where there is room to learn."""
    for number, cell in enumerate(cells, 1):
        for text in cell.texts[:show]:
            expected = "" if text.get("expected") is None else f", expected {one_line(text['expected'], 40)}"
            say(f"\ncell {number}, {verdict_of(text)}{expected}:")
            say(f"  {visible(text.get('prompt'))[-200:]}\n  -> {visible(text.get('response'))[:200]}")
    data = table_of(cells)
    say("\n" + table([data.headings, *data.rows]))
    say(f"\n{verdict(cells)}")
    say(one_line(f"samples to read: {folder / 'scout.html'}") + "\n")


def visible(text: object) -> str:
    """Return a stored text on one line, with its newlines as they are typed."""
    return one_line(str(text).replace("\n", "\\n"), 10_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate models, prompts and tasks side by side, without a run."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.scout", description=main.__doc__)
    parser.add_argument(
        "overrides", nargs="+", help="as for rlrt.run -m: model=a,b data=x,y 'model.prompt_template=choice(...)'"
    )
    parser.add_argument(
        "--show", type=count, default=1, help="samples of each cell in the terminal (default: 1); the page has more"
    )
    add_reading(parser)
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.WARNING, handlers=[to_terminal()])
    codes: list[int] = []
    try:
        refused = guarded(
            lambda: codes.append(scout(options.overrides, reading(options), options.show)), options.overrides
        )
    except KeyboardInterrupt:
        print("\nstopped; the results so far are stored, and the same command continues", file=sys.stderr)
        return 130
    return refused or max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
