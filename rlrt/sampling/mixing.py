"""The prompts of a step from several sources, in given shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlrt.errors import UserError
from rlrt.seeds import derive, permutation
from rlrt.types import Prompt


def numbers_of(shares: Mapping[str, float], count: int, seed: int, *stream: object) -> list[tuple[str, int]]:
    """Return how many of ``count`` prompts each source gives: its share rounded up or down, at random so that the mean is the
    share (systematic sampling)."""
    start = derive(seed, "mixture", *stream) / 2**63
    numbers, before, whole = [], 0, 0.0
    for position, (name, share) in enumerate(shares.items(), 1):
        whole = round(whole + share * count, 9)
        until = count if position == len(shares) else min(count, math.ceil(whole - start))
        numbers.append((name, until - before))
        before = until
    return numbers


def of_source(prompts: Sequence[Prompt], name: str) -> list[Prompt]:
    """Return the prompts of a source."""
    return [p for p in prompts if p.source == name]


def mixed_prompts(
    prompts: Sequence[Prompt], seed: int, step: int, count: int, shares: Mapping[str, float]
) -> list[Prompt]:
    """Return the prompts of a step, all different: a function of (seed, step). Each source has epochs and orders of its own.

    Raises:
        UserError: for a source with fewer prompts than a step may take of it.
    """
    chosen = []
    for name, number in numbers_of(shares, count, seed, step):
        own, most = of_source(prompts, name), math.ceil(round(shares[name] * count, 9))
        if most > len(own):
            raise UserError(
                f"data.weights: a step of train.prompts_per_step={count} takes up to {most} prompts of {name}, which has "
                f"{len(own)}; lower its weight or train.prompts_per_step."
            )
        epoch, offset = divmod(step - 1, len(own) // most)
        order = permutation(len(own), seed, "prompts", name, epoch)[offset * most :]
        chosen += [own[i] for i in order[:number]]
    return [chosen[i] for i in permutation(len(chosen), seed, "mixture", step)]
