"""What a forecast is made for, and what it assumes about rollouts before any was sampled."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from rlrt.config.schema import Settings
from rlrt.execution.memory.estimate import Layout, Lengths, number_bytes
from rlrt.execution.memory.sizes import Sizes
from rlrt.preflight.forecast.rates import Rates

MEAN = 0.2
"""Mean length of a response as a share of ``engine.max_new_tokens``: 4,096 of the paper's 20,480. Assumed."""
TRAINED = 0.7
"""Share of groups with right and wrong answers: the others have no advantage, and the update leaves them out. Assumed."""
TAUGHT = 0.35
"""Share of rollouts that get a teacher where the credit asks for one: the right ones of those groups. Assumed."""
SHOWN = 0.85
"""Share of rollouts that get a teacher where a dense loss asks for one: those beside a right answer. Assumed."""
PER_CONTEXT = 2
"""Taught rollouts that share one teacher's prompt. Assumed."""


@dataclass(frozen=True)
class Work:
    """Input of a forecast.

    Attributes:
        sizes: the model's.
        settings: the run's.
        lengths: tokens of the longest prompt and of the teacher's; every prompt counts as the longest.
        layout: processes, each on a card of its own; sharded or not; ``device_bytes`` of a card (None: the table's).
        rates: of the card.
        response: mean tokens of a response.
        evaluated: problems of one evaluation.
    """

    sizes: Sizes
    settings: Settings
    lengths: Lengths
    layout: Layout
    rates: Rates
    response: float
    evaluated: int

    @property
    def limit(self) -> int:
        """Return the tokens of the longest response."""
        return int(self.settings.engine.max_new_tokens)

    @property
    def rollouts(self) -> int:
        """Return the rollouts that a step trains on, without refills."""
        return self.settings.train.prompts_per_step * self.settings.train.rollouts_per_prompt

    @cached_property
    def number(self) -> int:
        """Return the bytes of a number in matrix products."""
        return number_bytes(self.settings, self.layout)

    @property
    def device_bytes(self) -> int:
        """Return the bytes of a card."""
        return self.layout.device_bytes or int(self.rates.memory.value)

    def with_response(self, response: float) -> Work:
        """Return the same work with another mean length of responses."""
        return dataclasses.replace(self, response=response)

    def on_cards(self, processes: int, sharded: bool) -> Work:
        """Return the same work on another number of cards."""
        layout = dataclasses.replace(self.layout, processes=processes, sharded=sharded)
        return dataclasses.replace(self, layout=layout)
