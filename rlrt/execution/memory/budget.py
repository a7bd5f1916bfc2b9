"""``train.token_budget=auto``: the largest micro-batch that the memory takes, by the estimate."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from rlrt.config.schema import LARGEST_BUDGET, Settings
from rlrt.errors import amount
from rlrt.execution.memory.estimate import Layout, Lengths, estimate
from rlrt.execution.memory.free import share_of_device, whole_device
from rlrt.execution.memory.lengths import lengths_of
from rlrt.execution.memory.sizes import Sizes, sizes_of
from rlrt.model.prompting import PromptBuilder
from rlrt.types import Prompt

USED = 0.9
"""Part of the free memory that a run plans with: the rest is for whatever else the machine does."""
log = logging.getLogger("rlrt")


def fixed(settings: Settings, tokens: int) -> Settings:
    """Return settings whose ``train.token_budget`` is a number; ``plain``, and so the identity, keeps what was typed."""
    return dataclasses.replace(settings, train=dataclasses.replace(settings.train, token_budget=tokens))


def fitting(sizes: Sizes, settings: Settings, lengths: Lengths, layout: Layout, free: int) -> tuple[Settings, int]:
    """Return settings with the largest token budget whose estimate fits, and the bytes that it is estimated to take.

    Tried are ``LARGEST_BUDGET`` and its halves, down to one longest sequence, which is taken if none fits: a micro-batch holds
    at least one row.

    Args:
        free: bytes of one device that the process may take.
    """
    least = min(LARGEST_BUDGET, max(lengths.prompt, lengths.context) + settings.engine.max_new_tokens)
    tried = LARGEST_BUDGET
    while True:
        candidate = fixed(settings, tried)
        peak = estimate(sizes, candidate, lengths, layout).peak
        if peak <= USED * free or tried == least:
            return candidate, peak
        tried = max(least, tried // 2)


def settled(
    settings: Settings,
    model: Any,
    prompts: Sequence[Prompt],
    builder: PromptBuilder,
    context: int,
    processes: int,
    earlier: int = 0,
) -> int:
    """Return the token budget of a run whose config says ``auto``, and log it.

    Args:
        model: the model that is trained, on its device.
        prompts, builder, context: as for ``lengths_of``.
        processes: number of the run's processes.
        earlier: budget of the run's earlier life, 0 for none. It is kept, whatever is free now, so that a run that goes on
            computes what it would have computed; not on a device that is too small for it even when empty.
    """
    config, device = settings.model, next(model.parameters()).device
    sizes = sizes_of(model.config, config.attn_implementation, config.lora, config.lora_targets, config.lora_alpha)
    layout = Layout(device.type, processes, processes > 1 and settings.distributed.strategy == "fsdp")
    lengths, free = lengths_of(settings, prompts, builder, context)[0], share_of_device(device)
    chosen, peak = fitting(sizes, settings, lengths, layout, free)
    name = "train.token_budget=auto"
    if 0 < earlier <= LARGEST_BUDGET:
        needed = estimate(sizes, fixed(settings, earlier), lengths, layout).peak
        if needed <= whole_device(device):
            chosen, peak, name = fixed(settings, earlier), needed, f"{name}, which this run settled when it began,"
        else:
            log.warning(
                "%s was %d tokens when this run began, which need an estimated %s, more than this device has; from here on its "
                "numbers differ in rounding from those of a run that was never moved",
                name,
                earlier,
                amount(needed),
            )
    tokens = chosen.train.budget
    if peak > USED * free:
        log.warning(
            "%s is %d tokens, and the run may need %s of the %s that are free; the kernel may kill it. "
            "python -m rlrt.preflight says which key helps",
            name,
            tokens,
            amount(peak),
            amount(free),
        )
    else:
        log.info("%s is %d tokens: an estimated %s of the %s that are free", name, tokens, amount(peak), amount(free))
    return tokens
