"""``python -m rlrt.pretrain [FOLDER]``: train an embedded model and measure it; ``--kind`` says which."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
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
from rlrt.pretrain import recipe, tokenizer, walks
from rlrt.pretrain.measure import start_numbers
from rlrt.pretrain.rows import Rows
from rlrt.records.streams import mask_streams
from rlrt.tasks.walk import drawn, move_sets

COUNTDOWN = "countdown"
"""The kind of the quick default, ``model=tiny``; the others are the testbed's (docs/testbed.md)."""
BASE = "testbed/base"


def main() -> None:
    """Train an embedded model, measure it, and write it to a folder."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.pretrain", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=None, help="folder for the model")
    parser.add_argument("--kind", choices=(COUNTDOWN, *walks.RECIPES), default=COUNTDOWN)
    parser.add_argument("--base", default=BASE, help="the base model that instruct and thinking go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replace-embedded", action="store_true", help="overwrite the files inside the package")
    arguments = parser.parse_args()
    kind: str = arguments.kind
    shipped = EMBEDDED if kind == COUNTDOWN else TESTBED / kind
    folder = shipped if arguments.replace_embedded else arguments.folder or Path("outputs/pretrain") / kind
    if kind in ("instruct", "thinking") and local_folder(arguments.base) is None:
        raise UserError(f"--base: there is no folder {arguments.base}; python -m rlrt.pretrain --kind base makes one.")
    folder.mkdir(parents=True, exist_ok=True)
    names = ["model=tiny", "data=countdown"] if kind == COUNTDOWN else [f"model=tiny_{kind}", "data=walk"]
    settings = load(composed(names))
    parts = parts_of(settings)
    task: Any = parts.task
    task.prepare()
    begin = time.monotonic()
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
    made = countdown(task, arguments.seed, say) if kind == COUNTDOWN else walker(kind, arguments, say)
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


def walker(kind: str, arguments: argparse.Namespace, say: Callable[[str], None]) -> Any:
    """Train a model of the testbed; instruct and thinking go on from the base."""
    chosen = walks.recipe_of(kind, arguments.seed)
    problems = drawn(move_sets()[0], walks.PROBLEMS, 2, walks.LONGEST, arguments.seed)
    rows = walks.WalkRows(problems, arguments.seed)
    start = None if kind == "base" else load_model(arguments.base, None, "sdpa")[0]
    return recipe.train(chosen, rows, say, start)


if __name__ == "__main__":
    sys.exit(guarded(main))
