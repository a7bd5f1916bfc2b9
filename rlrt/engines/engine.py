"""What the loop asks of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from rlrt.types import Generation, Sampling


class Engine(Protocol):
    """What the loop asks of a sampler.

    Attributes:
        exact: whether it samples from the trainer's own weights and arithmetic, and its entropies are exact.
    """

    max_new_tokens: int
    temperature: float
    exact: ClassVar[bool]

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Take the current weights; ``version`` counts the optimiser steps they have had."""

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """Responses as they end: a prompt's index, the index of one of its seeds, and the response to it."""

    def release(self) -> None:
        """Give back what memory the device has for sampling, until the next ``load``."""

    def close(self) -> None:
        """End whatever was started."""
