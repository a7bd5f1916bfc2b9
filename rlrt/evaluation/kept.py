"""One model for many evaluations: loaded again only where the next one asks for another."""

from __future__ import annotations

import copy
import json
from typing import Any

from rlrt.config.schema import Settings
from rlrt.execution.build import configure, read_model
from rlrt.model.device import resolve_device

WEIGHTS = ("path", "revision", "attn_implementation")
"""Keys of ``model.*`` that decide which weights are read, and by which code; all others are about prompts, ends or training."""


class KeptModel:
    """Gives the model of one evaluation after another. One model is in memory at a time.

    Adapters are left out: new ones change no output.

    Attributes:
        loads: how often a model was read.
    """

    def __init__(self) -> None:
        self.loads = 0
        self._name, self._own_stop = "", None
        self._kept: tuple[Any, Any] = (None, None)

    def __call__(self, settings: Settings) -> tuple[Any, Any]:
        """Return the model of some settings, with their stop tokens and precision, and its tokenizer.

        Raises:
            UserError: for a model that cannot be had.
        """
        name = name_of(settings)
        if name != self._name:
            self._name, self._kept = "", (None, None)  # the model before leaves the memory first
            model, tokenizer = read_model(settings)
            self._kept = model.to(resolve_device(settings.device)), tokenizer
            self._name, self._own_stop = name, copy.copy(model.generation_config.eos_token_id)
            self.loads += 1
        model, tokenizer = self._kept
        model.generation_config.eos_token_id = copy.copy(self._own_stop)  # else null would mean those of the one before
        configure(settings, model, tokenizer)
        return model, tokenizer


def name_of(settings: Settings) -> str:
    """Return a text that is equal for settings with the same weights in the same place."""
    return json.dumps([*(getattr(settings.model, key) for key in WEIGHTS), settings.device])
