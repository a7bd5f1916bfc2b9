"""The interface of an engine: what a sampler must offer, and what it may.

``rlrt.keys.with_defaults`` completes a class that offers only the required part, so that nobody asks what an engine has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rlrt.types import Generation, Sampling

REQUIRED = ("load", "sample", "exact")
"""What an engine class must define itself, besides its keys ``max_new_tokens`` and ``temperature``."""


class Engine:
    """Samples responses. Implementations are dataclasses whose fields are the keys of ``engine.*``.

    Required: the keys ``max_new_tokens`` and ``temperature``, ``exact``, ``load`` and ``sample``. All else has a default.
    A class need not inherit from ``Engine``.

    Attributes:
        max_new_tokens: the longest response, tokens.
        temperature: of the softmax in training rollouts.
        exact: whether the engine samples from the trainer's own weights and arithmetic, and its entropies are exact.
        importance_clip: the largest importance weight of a token of an engine that is not exact; None: weights are 1.
        release_memory: whether the engine gives back the device's memory for the update.
        max_rows: responses that are sampled at once.
        grade_truncated: whether a response that met the length limit is graded like any other; else it counts as wrong.
        gpu_memory_utilization: share of the device that the engine takes for itself; None: none, or with ``own_card`` what the
            trainer leaves (``expect``).
        url: of a server that samples; None: there is none.
        start: whether the engine starts a server of its own for each run.
        takes_shards: whether ``load`` can read weights that are sharded over ranks (``rlrt.model.lora.named_weights`` gathers
            them).
        synced_s, synced_bytes: seconds that all ``load`` took to move weights, and the bytes that this rank moved; both stay 0
            for an engine that samples by the trainer's own tensors.
        own_card: whether each rank must see its own GPU alone, since the engine takes the first GPU that its process sees.
    """

    max_new_tokens: int
    temperature: float
    exact: ClassVar[bool]
    importance_clip: float | None = None
    release_memory: bool = False
    max_rows: int = 512
    grade_truncated: bool = False
    gpu_memory_utilization: float | None = None
    url: str | None = None
    start: bool = False
    synced_s: float = 0.0
    synced_bytes: int = 0
    own_card: ClassVar[bool] = False
    takes_shards: ClassVar[bool] = False

    @staticmethod
    def asked_to_end() -> bool:
        """True if sampling should end at once, with the responses that are there. A run puts its own function here; an engine
        asks it now and then while it samples, or leaves that to its caller, who asks after every response."""
        return False

    def expect(self, longest: int, share: float) -> None:
        """Learn, before the first ``load``, what a run will ask.

        Args:
            longest: tokens of the longest prompt and a response of full length together.
            share: part of the GPU's memory, 0 to 1, that the trainer leaves; 1 where the engine does not share the GPU.
        """

    def longest(self) -> int | None:
        """Tokens of the longest prompt and response together that the engine takes, once it has loaded weights; None: whatever
        fits the model's context."""
        return None

    def cards_beside(self, on_gpu: bool) -> int:
        """GPUs of the run's first machine that the engine takes for processes of its own; ranks then see the others alone.

        Args:
            on_gpu: whether the run computes on GPUs.
        """
        return 0

    def settle(self, folder: Path, cards: Sequence[str]) -> None:
        """Learn, before the first ``load``, the folder of the run or evaluation, and the GPUs of ``cards_beside``, as
        CUDA_VISIBLE_DEVICES names them ([] on other machines than the run's first)."""

    def check_installed(self) -> None:
        """Refuse what the engine needs and this environment lacks, before anything is read or built; raises UserError."""

    def load(self, model: Any, stop_ids: Sequence[int], version: int) -> None:
        """Take the current weights; ``version`` counts the optimiser steps they have had."""
        raise TypeError(f"{type(self).__name__} does not define load")

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """Responses as they end: a prompt's index, the index of one of its seeds, and the response to it."""
        raise TypeError(f"{type(self).__name__} does not define sample")

    def join(self, world: Any) -> None:
        """Take part in a run of several ranks (``rlrt.distributed.world.World``); for an engine that all ranks share."""

    def release(self) -> None:
        """Give back what memory the device has for sampling, until the next ``load``."""

    def close(self) -> None:
        """End whatever was started."""
