"""The part of a GPU that an engine in the trainer's process may take, and the longest sequence that it must hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from rlrt.config.schema import Settings
from rlrt.engines.engine import Engine
from rlrt.errors import UserError, amount
from rlrt.execution.data import longest_prompt
from rlrt.execution.memory.estimate import HEADROOM, RUNTIME, Layout, Lengths, engine_needs, estimate
from rlrt.execution.memory.lengths import lengths_of
from rlrt.execution.memory.passes import FLOAT
from rlrt.execution.memory.sizes import Sizes, sizes_of
from rlrt.execution.probe import is_probed
from rlrt.model.prompting import PromptBuilder
from rlrt.types import Prompt


def tell_engine(
    settings: Settings,
    engine: Engine,
    prompts: Sequence[Prompt],
    builder: PromptBuilder,
    model: Any,
    context: int,
    processes: int | None = 1,
) -> None:
    """Tell an engine, before its first ``load``, the longest sequence and its share of the GPU.

    Args:
        prompts: all that it will be asked.
        context: maximum tokens of prompt and response together.
        processes: number of the run's processes; None: nothing is trained, only the weights lie on the GPU.

    Raises:
        UserError: where the trainer leaves less than the engine needs.
    """
    device, share = next(model.parameters()).device, 1.0
    if engine.own_card and engine.gpu_memory_utilization is None and device.type == "cuda":
        lora = settings.model
        sizes = sizes_of(model.config, lora.attn_implementation, lora.lora, lora.lora_targets, lora.lora_alpha)
        layout = Layout(
            "cuda",
            processes or 1,
            (processes or 1) > 1 and settings.distributed.strategy == "fsdp",
            torch.cuda.get_device_properties(device).total_memory,
        )
        lengths, _ = lengths_of(settings, prompts, builder, context)
        share = left_share(sizes, settings, lengths, layout, processes is not None)
    responses = 1 if processes else 2  # rlrt.analyze lets the policy go on from within a response
    longest = longest_prompt(builder, prompts)
    if processes and is_probed(settings):  # the engine answers the teacher's prompts too
        longest = lengths_of(settings, prompts, builder, context)[0].context
    longest += responses * settings.engine.max_new_tokens
    engine.expect(min(longest, context), share)


def left_share(sizes: Sizes, settings: Settings, lengths: Lengths, layout: Layout, trains: bool = True) -> float:
    """Return the part of the GPU, 0 to 1, that the trainer leaves to the engine.

    Args:
        trains: False if only the weights lie on the GPU beside the engine.

    Raises:
        UserError: where that is less than the engine needs.
    """
    device = layout.device_bytes or 0
    lengths = lengths if trains else Lengths(lengths.prompt, lengths.prompt)  # an evaluation asks no teacher
    needed = engine_needs(sizes, settings, lengths, layout)
    if trains:
        none = dataclasses.replace(layout, device_bytes=0)  # the engine then counts with what it needs alone
        phases = estimate(sizes, settings, lengths, none).phases.values()
        beside = max(sum(parts.values()) - parts["server"] for parts in phases if parts["server"])
    else:
        beside = FLOAT * sizes.weights + RUNTIME["cuda"]
    left = device - beside - HEADROOM
    if left < needed:
        awake = "" if settings.engine.release_memory else "engine.release_memory=true, "
        raise UserError(
            f"engine: vLLM needs {amount(needed)} of the GPU for its weights and one response, and of {amount(device)} "
            f"the trainer leaves {amount(max(0, left))}; set {awake}a smaller train.token_budget, or shard the model "
            "over more GPUs (distributed.strategy=fsdp)."
        )
    return left / device
