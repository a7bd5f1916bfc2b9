"""``python -m rlrt.pretrain [FOLDER]``: train an embedded model and measure it; ``--kind`` says which."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.refused import guarded
from rlrt.errors import UserError
from rlrt.execution.parts import parts_of
from rlrt.model.load import load as load_model
from rlrt.model.policy import Policy
from rlrt.paths import EMBEDDED, TESTBED, local_folder
from rlrt.pretrain import levels, recipe, tokenizer, walks
from rlrt.pretrain.measure import start_numbers
from rlrt.pretrain.recipe import Recipe
from rlrt.pretrain.rows import Rows
from rlrt.pretrain.texts import TextRows
from rlrt.records.streams import mask_streams
from rlrt.tasks.walk import drawn, move_sets

COUNTDOWN = "countdown"
"""The kind of the quick default, ``model=tiny``; the others are the testbed's (docs/testbed.md)."""
RECIPES: Mapping[str, Recipe] = walks.RECIPES | levels.RECIPES


def main() -> None:
    """Train an embedded model, measure it, and write it to a folder."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.pretrain", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=None, help="folder for the model")
    parser.add_argument("--kind", choices=(COUNTDOWN, *RECIPES), default=COUNTDOWN)
    parser.add_argument(
        "--base", default=None, help="the base model that instruct and thinking go on from (default: shipped)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replace-embedded", action="store_true", help="overwrite the files inside the package")
    arguments = parser.parse_args()
    kind: str = arguments.kind
    shipped = EMBEDDED if kind == COUNTDOWN else TESTBED / kind
    folder = shipped if arguments.replace_embedded else arguments.folder or Path("outputs/pretrain") / kind
    base = base_of(kind)
    start = None if kind in (COUNTDOWN, base) else arguments.base or f"testbed/{base}"
    if start is not None and local_folder(start) is None:
        raise UserError(f"--base: there is no folder {start}; python -m rlrt.pretrain --kind {base} makes one.")
    folder.mkdir(parents=True, exist_ok=True)
    data = "countdown" if kind == COUNTDOWN else "levels" if kind in levels.RECIPES else "walk"
    names = ["model=tiny" if kind == COUNTDOWN else f"model=tiny_{kind}", f"data={data}"]
    settings = load(composed(names))
    parts = parts_of(settings)
    task: Any = parts.task
    task.prepare()
    begin = time.monotonic()
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
    made = (
        countdown(task, arguments.seed, say) if kind == COUNTDOWN else testbed(kind, task, arguments.seed, start, say)
    )
    seconds = time.monotonic() - begin
    words = tokenizer.build(tags=kind != COUNTDOWN)
    Policy(made, words, None, 1.0).save(folder)
    samples = 8 if kind == COUNTDOWN else 64
    numbers = start_numbers(
        made, words, parts.engine, task, settings.model.prompt_template, settings.teacher.template, samples
    )
    record = {
        "parameters": sum(p.numel() for p in made.parameters()),
        "seed": arguments.seed,
        "training_seconds_on_one_thread": round(seconds),
        **numbers,
    }
    (folder / "start.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    print(f"written to {folder}; try it: python -m rlrt.run {' '.join(names)} model.path={folder}")


def countdown(task: Any, seed: int, say: Callable[[str], None]) -> Any:
    """Train the model of the quick default."""
    rows = Rows([p.answer for p in task.train], task.highest, tokenizer.TOKEN_ID, seed)
    return recipe.train(recipe.Recipe(seed=seed), rows, say)


def base_of(kind: str) -> str:
    """Return the kind of the base model that a model of the testbed goes on from; a base is its own."""
    return "levels_base" if kind in levels.RECIPES else "base"


def testbed(kind: str, task: Any, seed: int, start: str | None, say: Callable[[str], None]) -> Any:
    """Train a model of the testbed, which goes on from ``start`` if it is no base."""
    if kind in levels.RECIPES:
        one = next(iter(task.sources.values()))
        rows: TextRows = levels.LevelRows(seed, one.highest, one.target_low, one.target_high)
    else:
        rows = walks.WalkRows(seed, drawn(move_sets()[0], walks.PROBLEMS, 2, walks.LONGEST, seed))
    model = None if start is None else load_model(start, None, "sdpa")[0]
    return recipe.train(replace(RECIPES[kind], seed=seed), rows, say, model)


if __name__ == "__main__":
    sys.exit(guarded(main))
