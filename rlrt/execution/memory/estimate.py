"""Bytes on one device in each phase of a step: weights, optimiser, copies, activations, logits, key-value cache.

The parts of every moment of a step that can be the peak are added; a phase counts by its largest moment, a run by its largest
phase.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlrt.config.schema import Settings
from rlrt.execution.memory.passes import (
    FLOAT,
    WIDE,
    Batch,
    cast_head,
    chunk,
    hidden,
    in_backward,
    in_forward,
    largest_batch,
    room,
    saved_by_layer,
    saved_once,
)
from rlrt.execution.memory.sizes import Sizes
from rlrt.execution.probe import is_probed
from rlrt.model.packed import flash_takes
from rlrt.training.teacher import holds_copy, runs_again

RUNTIME = {"cpu": 600 * 2**20, "cuda": 700 * 2**20}
"""Bytes of the libraries: measured for a CPU process before its model; a guess for a CUDA context (no GPU was available)."""
PHASES = ("rollout", "scoring", "gradient", "step")
"""Phases of a step."""
RESTING = ("rollout", "scoring")
"""Phases in which ``train.offload=optimiser`` has the moments in the host's memory; with one mini-batch, the gradient's too."""
IN_FLIGHT = 2
"""Layers whose inputs are on the device while the others' are kept in the host's memory: one copied away, one copied back."""
HEADROOM = 4 * 10**9
"""Bytes of a device that are left to CUDA graphs, NCCL and torch's fragmentation when an engine takes what the trainer
leaves; a guess, never measured."""
ENGINE_WORK = 3 * 10**9
"""Bytes that vLLM needs besides weights and cache, for its largest batch; a guess, never measured."""
PROCESS = 3 * 10**9
"""Bytes of host memory of a process with a GPU, besides the model: libraries, data, tokenizer; a guess, never measured."""
CHOOSING = {2: 30, 4: 28}
"""Bytes per row and entry of the vocabulary while ``rlrt.engines.hf.choose`` samples, by bytes of a logit: the logits in
their own precision and in float32, log-probabilities, probabilities, their sums in float64, and two tensors for the entropy."""


@dataclass(frozen=True)
class Layout:
    """Layout of a job's processes on devices.

    Attributes:
        kind: cpu or cuda.
        processes: number of processes that share the work.
        sharded: True if weights, gradients, optimiser and copies are sharded over the processes (FSDP).
        device_bytes: bytes of the device, of which vLLM takes its share; None if unknown.
    """

    kind: str = "cuda"
    processes: int = 1
    sharded: bool = False
    device_bytes: int | None = None


@dataclass(frozen=True)
class Lengths:
    """Longest sequences, in tokens.

    Attributes:
        prompt: the student's prompt.
        context: the teacher's prompt, its context included.
    """

    prompt: int
    context: int


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device.

    Attributes:
        phases: for each of ``PHASES`` bytes by part. Parts: ``runtime`` (libraries), ``weights`` (float32), ``gathered`` (under
            FSDP full weights of one layer, embedding and output layer, in the precision of products), ``optimiser`` (AdamW's
            two moments), ``teacher`` and ``reference`` (copies of the model; with adapters what the teacher has of its own),
            ``gradients``, ``weight copies`` (bfloat16, the engine's concatenated ones, or its unsharded ones under FSDP),
            ``activations``, ``logits``, ``cache`` (keys and values), ``temporaries`` (of the optimiser), ``server`` (what an
            engine takes for itself on the trainer's device).
    """

    phases: Mapping[str, Mapping[str, int]]

    def total(self, phase: str) -> int:
        """Return the bytes in a phase."""
        return sum(self.phases[phase].values())

    @property
    def worst(self) -> str:
        """Return the phase that needs most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Return the bytes that a device must have."""
        return self.total(self.worst)


def estimate(sizes: Sizes, settings: Settings, lengths: Lengths, layout: Layout) -> Estimate:
    """Return the estimate of a run."""
    held = persistent(sizes, settings, layout)
    moments = {
        "rollout": [rollout(sizes, settings, lengths, layout)],
        "scoring": [scoring(sizes, settings, lengths, layout)],
        "gradient": gradient(sizes, settings, lengths, layout),
        "step": [optimiser_step(sizes, layout)],
    }
    resting = [*RESTING, "gradient"] if settings.train.minibatches == 1 else RESTING
    away = {"optimiser": 0} if offloads(settings, layout) else {}
    phases = {
        name: max((held | (away if name in resting else {}) | m for m in candidates), key=total)
        for name, candidates in moments.items()
    }
    awake = ("rollout",) if settings.engine.release_memory else PHASES
    beside = max(total(phases[name]) for name in awake)
    server = server_bytes(sizes, settings, lengths, layout, beside)
    return Estimate({name: parts | {"server": server if name in awake else 0} for name, parts in phases.items()})


def total(parts: Mapping[str, int]) -> int:
    """Return the sum of the parts."""
    return sum(parts.values())


def offloads(settings: Settings, layout: Layout) -> bool:
    """True if the optimiser's moments lie in the host's memory between two updates."""
    return settings.train.offload == "optimiser" and layout.kind != "cpu"


def number_bytes(settings: Settings, layout: Layout) -> int:
    """Return the bytes of a number in the precision of matrix products; ``dtype=auto`` is bfloat16 on a GPU."""
    half = settings.dtype == "bfloat16" or (settings.dtype == "auto" and layout.kind == "cuda")
    return 2 if half else FLOAT


def shards(layout: Layout) -> int:
    """Return the number of shards of weights, gradients and optimiser."""
    return layout.processes if layout.sharded else 1


def persistent(sizes: Sizes, settings: Settings, layout: Layout) -> dict[str, int]:
    """Return the parts that are allocated from the first step on."""
    train, teacher = settings.train, settings.teacher
    parts, model = shards(layout), -(-FLOAT * sizes.weights // shards(layout))
    copied = holds_copy(teacher.weights, runs_again(settings.method, train.minibatches))
    number = number_bytes(settings, layout)
    gathered = number * (sizes.layer + sizes.embeddings + (sizes.head if copied and settings.method.distils else 0))
    moving = -(-FLOAT * sizes.trained // parts)  # adapters are all that a model beside the student has of its own
    own = model if not sizes.adapted else moving if teacher.weights != "frozen" else 0
    return {
        "runtime": RUNTIME.get(layout.kind, RUNTIME["cuda"]),
        "weights": model,
        "gathered": gathered if parts > 1 else 0,
        "optimiser": -(-2 * FLOAT * sizes.trained // parts),
        "teacher": own if copied else 0,
        "reference": model if train.kl_coef > 0 and not sizes.adapted else 0,
    }


def server_bytes(sizes: Sizes, settings: Settings, lengths: Lengths, layout: Layout, beside: int) -> int:
    """Return the bytes that an engine takes on the trainer's device for itself.

    That is its share, where a share is set; else what the trainer leaves, and at least what the engine needs.

    Args:
        beside: bytes that the trainer needs while the engine holds its memory.
    """
    share, device = settings.engine.gpu_memory_utilization, layout.device_bytes or 0
    if layout.kind == "cpu":
        return 0
    if share is not None:
        return int(share * device)
    if not settings.engine.own_card:
        return 0
    return max(engine_needs(sizes, settings, lengths, layout), device - beside - HEADROOM)


def engine_needs(sizes: Sizes, settings: Settings, lengths: Lengths, layout: Layout) -> int:
    """Return the bytes without which vLLM does not start: all weights, its work, and the cache of one longest response, to a
    teacher's prompt where the run probes its teacher."""
    number = number_bytes(settings, layout)
    prompt = lengths.context if is_probed(settings) else lengths.prompt
    row = 2 * sizes.keys * number * sizes.layers * (prompt + settings.engine.max_new_tokens)
    return number * sizes.weights + row + ENGINE_WORK


def host_bytes(sizes: Sizes, settings: Settings, layout: Layout, processes: int) -> int:
    """Return the bytes of host memory that a node's processes take, whose models compute on GPUs.

    Each process reads the whole model in float32 before it goes to its GPU. Of sharded weights each reads its own rows, and the
    node's memory holds the files once, as the kernel's cache. Later the processes together copy weights, moving teacher and
    moments for a checkpoint, each its part. What is moved away from the GPUs comes on top.

    Args:
        processes: number of processes on the node.
    """
    held = persistent(sizes, settings, dataclasses.replace(layout, sharded=False))
    copied = (held["weights"] + held["teacher"] + held["optimiser"]) * processes // max(processes, layout.processes)
    read = held["weights"] * (1 if layout.sharded else processes)
    moved = persistent(sizes, settings, layout)["optimiser"] if offloads(settings, layout) else 0
    if settings.model.offload_activations and layout.kind != "cpu":
        moved += sizes.layers * settings.train.budget * sizes.hidden * FLOAT
    return processes * (PROCESS + moved) + max(read, copied)


def samples_in_process(settings: Settings) -> bool:
    """True if the engine samples in the trainer's own process, from its weights (``engine=hf``)."""
    return bool(settings.engine.exact)


def rollout(sizes: Sizes, settings: Settings, lengths: Lengths, layout: Layout) -> dict[str, int]:
    """Return the parts while rows are decoded, at their full length."""
    if not samples_in_process(settings):
        return {}
    number, rows = number_bytes(settings, layout), decoded_rows(settings, layout.processes)
    unsharded = FLOAT * sizes.weights if shards(layout) > 1 else 0  # the engine's unsharded copy, while it samples
    width = lengths.prompt + settings.engine.max_new_tokens
    token = 2 * sizes.keys * number * sizes.layers
    choosing = rows * sizes.vocabulary * CHOOSING[number]
    if sizes.quick:
        capacity = room(lengths.prompt, settings.engine.max_new_tokens)
        copies = number * (sizes.matrices + (sizes.head if number < FLOAT else 0))
        cache = rows * token * capacity
        attending = rows * sizes.heads * capacity * (number + 2 * FLOAT)
        return {"weight copies": copies + unsharded, "cache": cache, "logits": max(choosing, attending)}
    copies = number * (sizes.matrices + sizes.head) if number < FLOAT and not sizes.adapted else 0
    grown = token // sizes.layers  # transformers copies a layer's cache for every token
    return {"weight copies": copies + unsharded, "cache": rows * width * (token + grown), "logits": choosing}


def decoded_rows(settings: Settings, processes: int) -> int:
    """Return the number of rows decoded at once: whole groups up to ``engine.max_rows``, in training or evaluation."""
    train, eval, most = settings.train, settings.eval, settings.engine.max_rows

    def rows_at_once(prompts: int, group: int) -> int:
        return min(prompts, max(1, most // group)) * group

    prompts = -(-train.prompts_per_step // processes)
    held_out = rows_at_once(eval.prompts, eval.samples_per_prompt) if eval.prompts else most
    return max(rows_at_once(prompts, train.rollouts_per_prompt), held_out)


def batch_of(sizes: Sizes, settings: Settings, layout: Layout, prompt: int, rows: int) -> Batch:
    """Return the largest micro-batch with prompts of that length."""
    return largest_batch(
        sizes.packed,
        settings.train.budget,
        prompt,
        settings.engine.max_new_tokens,
        settings.train.rollouts_per_prompt,
        rows,
        sizes.packed and flash_takes(layout.kind, number_bytes(settings, layout), sizes.head_size),
    )


def rows_per_process(settings: Settings, processes: int, minibatches: int = 1) -> int:
    """Return the rollouts of one process in one mini-batch."""
    train = settings.train
    return -(-train.prompts_per_step // (processes * minibatches)) * train.rollouts_per_prompt


def cast_weights(sizes: Sizes, settings: Settings, layout: Layout) -> int:
    """Return the bytes of the layers' copies in bfloat16; 0 in float32, and where weights are gathered in bfloat16."""
    number = number_bytes(settings, layout)
    return number * sizes.matrices if number < FLOAT and shards(layout) == 1 else 0


def head_copy(sizes: Sizes, settings: Settings, layout: Layout) -> int:
    """Return the bytes of the output layer's weight as a pass casts it; 0 where a GPU gathers it in bfloat16."""
    gathered = shards(layout) > 1 and layout.kind != "cpu"
    return 0 if gathered else cast_head(sizes, number_bytes(settings, layout), layout.kind)


def scoring(sizes: Sizes, settings: Settings, lengths: Lengths, layout: Layout) -> dict[str, int]:
    """Return the parts of a pass without gradients: student, teacher or reference over a micro-batch."""
    number, rows = number_bytes(settings, layout), rows_per_process(settings, layout.processes)
    prompt = max(lengths.prompt, lengths.context if settings.method.needs_teacher else 0)
    batch = batch_of(sizes, settings, layout, prompt, rows)
    tensor = chunk(sizes, batch, layout.kind)
    # frozen weights are cast one layer at a time
    cached = cast_weights(sizes, settings, layout) // (sizes.layers if sizes.adapted else 1)
    cached += head_copy(sizes, settings, layout)
    runs = in_forward(sizes, batch, number, layout.kind) + hidden(sizes, batch)
    return {"weight copies": cached, "activations": runs, "logits": WIDE["plain"] * tensor}


def wide(settings: Settings) -> int:
    """Return the number of tensors of tokens x vocabulary that the method's loss holds at once."""
    if settings.method.distils:
        return WIDE["distilled"] + len(settings.method.dense_places()) - 1  # one more of each further teacher
    return WIDE["term" if settings.method.auxiliary else "plain"]


def gradient(sizes: Sizes, settings: Settings, lengths: Lengths, layout: Layout) -> list[dict[str, int]]:
    """Return the parts of those moments of a micro-batch's forward and backward pass that can be the peak."""
    number, kind = number_bytes(settings, layout), layout.kind
    batch = batch_of(
        sizes,
        settings,
        layout,
        lengths.prompt,
        rows_per_process(settings, layout.processes, settings.train.minibatches),
    )
    cast, one = cast_weights(sizes, settings, layout), saved_by_layer(sizes, batch, number, kind)
    recomputes = settings.model.gradient_checkpointing
    saved = saved_once(sizes, batch)
    kept = min(sizes.layers, IN_FLIGHT) if settings.model.offload_activations and kind != "cpu" else sizes.layers
    saved += kept * batch.tokens * sizes.hidden * FLOAT if recomputes else sizes.layers * one
    distils = settings.method.distils
    # of the teacher's output layer, in each context, held until the student's ran
    teachers = hidden(sizes, batch) * len(settings.method.dense_places())
    tensor, head_copies = chunk(sizes, batch, kind), head_copy(sizes, settings, layout) * (2 if distils else 1)
    head = 0 if sizes.adapted else FLOAT * sizes.head
    gradients = {"gradients": -(-FLOAT * sizes.trained // shards(layout))}
    layer_copies = 0 if recomputes else cast
    at_layer = saved + in_backward(sizes, batch, number, kind) + (one if recomputes else 0)
    recast = cast // sizes.layers if recomputes else cast
    moments = [
        # the output layer's backward pass: one gradient of its weight, to which every chunk adds
        {
            "weight copies": layer_copies + head_copies,
            "activations": saved + teachers,
            "logits": wide(settings) * tensor + head,
        },
        # a layer's backward pass; a tied output layer's gradient waits for the embedding's
        {"weight copies": recast, "activations": at_layer, "logits": head if sizes.tied else 0},
    ]
    if recomputes:
        runs = saved + in_forward(sizes, batch, number, kind)
        moments.append({"weight copies": cast // (sizes.layers if sizes.adapted else 1), "activations": runs})
    return [gradients | moment for moment in moments]


def optimiser_step(sizes: Sizes, layout: Layout) -> dict[str, int]:
    """Return the parts of AdamW's step: the fused kernel of a GPU makes no temporaries, a CPU goes tensor by tensor."""
    trained = FLOAT * sizes.trained // shards(layout)
    more = 0 if layout.kind != "cpu" else 2 * FLOAT * sizes.largest // shards(layout)
    return {"gradients": trained, "temporaries": more}


def parts_of(estimate: Estimate) -> list[str]:
    """Return the names of all parts above zero in some phase, the largest of the worst phase first."""
    names: dict[str, Any] = {}
    for parts in estimate.phases.values():
        names |= {name: None for name, size in parts.items() if size}
    worst = estimate.phases[estimate.worst]
    return sorted(names, key=lambda name: -worst.get(name, 0))
