"""A callback of Hydra (``hydra.callbacks``): what is there before Hydra makes a run's folder with its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import read_write

from rlrt.distributed.rank import is_main
from rlrt.records.folder import BEGINNINGS, Beginning


class NoteBeginning(Callback):
    """Notes the beginning of a single run, so that a refused run removes only what it made.

    Of the ranks of one run the main one alone makes the folder: no rank could tell else which of them made it. Hydra makes
    ``hydra.run.dir`` in each, so in the others that is the current folder, which is there.

    Hydra calls every method of a callback and warns of each that lacks: its own class has all of them.
    """

    def on_run_start(self, config: Any, **_: Any) -> None:
        """Before ``hydra.run.dir`` is made."""
        BEGINNINGS.append(Beginning(Path(str(config.hydra.run.dir))))
        if not is_main():
            with read_write(config.hydra.run):
                config.hydra.run.dir = "."
