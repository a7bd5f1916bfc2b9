"""``python -m rlrt.pretrain [FOLDER]``: train the embedded model from scratch and measure it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.refused import guarded
from rlrt.execution.parts import parts_of
from rlrt.model.policy import Policy
from rlrt.paths import EMBEDDED
from rlrt.pretrain import recipe, tokenizer
from rlrt.pretrain.measure import start_numbers
from rlrt.records.streams import mask_streams


def main() -> None:
    """Train the embedded model, measure it, and write it to a folder."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.pretrain", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/pretrain"), help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replace-embedded", action="store_true", help="overwrite the files inside the package")
    arguments = parser.parse_args()
    folder = EMBEDDED if arguments.replace_embedded else arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = load(composed(["model=tiny", "data=countdown"]))
    parts = parts_of(settings)
    task: Any = parts.task
    engine = parts.engine
    task.prepare()
    begin = time.monotonic()
    configuration = recipe.Recipe(seed=arguments.seed)
    model = recipe.train(
        configuration, [p.answer for p in task.train], task.highest, lambda line: print(line, flush=True)
    )
    seconds = time.monotonic() - begin
    text_tokenizer = tokenizer.build()
    Policy(model, text_tokenizer, None, 1.0).save(folder)
    numbers = start_numbers(
        model, text_tokenizer, engine, task, settings.model.prompt_template, settings.teacher.template
    )
    parameters = sum(p.numel() for p in model.parameters())
    record = {
        "parameters": parameters,
        "seed": arguments.seed,
        "training_seconds_on_one_thread": round(seconds),
        **numbers,
    }
    (folder / "start.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    print(f"written to {folder}; try it: python -m rlrt.run model.path={folder}")


if __name__ == "__main__":
    sys.exit(guarded(main))
