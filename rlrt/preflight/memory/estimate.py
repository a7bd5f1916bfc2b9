"""Bytes on one device in each phase of a step: weights, optimiser, copies, activations, logits, key-value cache.

Every moment of a step that can be the largest is added up part by part; a phase is its largest moment, a run its largest phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlrt.config.schema import Settings
from rlrt.preflight.memory.passes import (
    FLOAT,
    WIDE,
    Batch,
    chunk,
    hidden,
    in_backward,
    in_forward,
    kept_by_layer,
    kept_once,
    largest_batch,
    room,
)
from rlrt.preflight.memory.sizes import Sizes
from rlrt.training.teacher import holds_copy, runs_again

RUNTIME = {"cpu": 600 * 2**20, "cuda": 700 * 2**20}
"""Bytes of the libraries: of a CPU process before its model, measured; of a CUDA context, a guess (no GPU was at hand)."""
PHASES = ("rollout", "scoring", "gradient", "step")
CHOOSING = {2: 30, 4: 28}
"""Bytes for each row and entry of the vocabulary while ``rlrt.engines.hf.choose`` draws, by bytes of a logit: logits as they
come and in float32, log-probabilities, probabilities, their sums in float64, and the entropy's two."""


@dataclass(frozen=True)
class Place:
    """Where a process computes.

    Attributes:
        kind: cpu or cuda.
        processes: that share the work.
        sharded: whether weights, gradients, optimiser and copies are divided among them (FSDP).
        device_bytes: of the device, of which a server's engine takes its share; None: not known.
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
        context: the teacher's, a solution included.
    """

    prompt: int
    context: int


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device.

    Attributes:
        phases: for each of ``PHASES`` bytes by part. Parts: ``runtime`` (libraries), ``weights`` (float32), ``gathered``
            (whole weights of one layer and the embeddings under FSDP), ``optimiser`` (AdamW's two moments), ``teacher`` and
            ``reference`` (copies of the model), ``gradients``, ``weight copies`` (bfloat16, the engine's laid together, or its
            whole ones under FSDP), ``activations``, ``logits``, ``cache`` (keys and values), ``temporaries`` (of the
            optimiser), ``server`` (the share of an engine that reserves it).
    """

    phases: Mapping[str, Mapping[str, int]]

    def total(self, phase: str) -> int:
        """Bytes in a phase."""
        return sum(self.phases[phase].values())

    @property
    def worst(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes that a device must have."""
        return self.total(self.worst)


def estimate(sizes: Sizes, settings: Settings, lengths: Lengths, place: Place) -> Estimate:
    """What a run holds."""
    held = persistent(sizes, settings, place)
    server = server_share(settings, place)
    always = 0 if getattr(settings.engine, "release_memory", False) else server
    moments = {
        "rollout": [rollout(sizes, settings, lengths, place) | {"server": server}],
        "scoring": [scoring(sizes, settings, lengths, place) | {"server": always}],
        "gradient": [m | {"server": always} for m in gradient(sizes, settings, lengths, place)],
        "step": [optimiser_step(sizes, place) | {"server": always}],
    }
    return Estimate({name: max((held | m for m in found), key=total) for name, found in moments.items()})


def total(parts: Mapping[str, int]) -> int:
    """Their sum."""
    return sum(parts.values())


def number_bytes(settings: Settings) -> int:
    """Bytes of a number that matrices are multiplied in."""
    return 2 if settings.dtype == "bfloat16" else FLOAT


def shards(place: Place) -> int:
    """Into how many parts weights and what belongs to them are divided."""
    return place.processes if place.sharded else 1


def persistent(sizes: Sizes, settings: Settings, place: Place) -> dict[str, int]:
    """What is held from the first step on."""
    train, teacher = settings.train, settings.teacher
    parts, model = shards(place), -(-FLOAT * sizes.weights // shards(place))
    copied = holds_copy(teacher.weights, runs_again(settings.method, train.minibatches))
    return {
        "runtime": RUNTIME.get(place.kind, RUNTIME["cuda"]),
        "weights": model,
        "gathered": FLOAT * (sizes.layer + sizes.embeddings) if parts > 1 else 0,
        "optimiser": -(-2 * FLOAT * sizes.trained // parts),
        "teacher": model if copied else 0,
        "reference": model if train.kl_coef > 0 else 0,
    }


def server_share(settings: Settings, place: Place) -> int:
    """Bytes that an engine reserves on the device for itself."""
    share = getattr(settings.engine, "gpu_memory_utilization", None)
    return int(share * (place.device_bytes or 0)) if share is not None and place.kind != "cpu" else 0


def samples_here(settings: Settings) -> bool:
    """Whether the engine samples in the trainer's own process, on its weights (``engine=hf``)."""
    return bool(settings.engine.exact)


def rollout(sizes: Sizes, settings: Settings, lengths: Lengths, place: Place) -> dict[str, int]:
    """While rows are decoded, at their longest."""
    if not samples_here(settings):
        return {}
    number, rows = number_bytes(settings), decoded_rows(settings, place.processes)
    whole = FLOAT * sizes.weights if shards(place) > 1 else 0  # the engine's own, while it samples
    width = lengths.prompt + settings.engine.max_new_tokens
    token = 2 * sizes.keys * number * sizes.layers
    choosing = rows * sizes.vocabulary * CHOOSING[number]
    if sizes.packed:
        places = room(lengths.prompt, settings.engine.max_new_tokens)
        copies = number * (sizes.matrices + (sizes.head if number < FLOAT else 0))
        cache = rows * token * places
        attending = rows * sizes.heads * places * (number + 2 * FLOAT)
        return {"weight copies": copies + whole, "cache": cache, "logits": max(choosing, attending)}
    copies = number * (sizes.matrices + sizes.head) if number < FLOAT and not sizes.adapted else 0
    grown = token // sizes.layers  # a layer's cache is laid out anew for every token
    return {"weight copies": copies + whole, "cache": rows * width * (token + grown), "logits": choosing}


def decoded_rows(settings: Settings, processes: int) -> int:
    """Rows that are decoded at once: whole groups up to ``engine.max_rows``, in training or evaluation."""
    train, eval, most = settings.train, settings.eval, settings.engine.max_rows

    def taken(prompts: int, group: int) -> int:
        return min(prompts, max(1, most // group)) * group

    prompts = -(-train.prompts_per_step // processes)
    held_out = taken(eval.prompts, eval.samples_per_prompt) if eval.prompts else most
    return max(taken(prompts, train.rollouts_per_prompt), held_out)


def batch_of(sizes: Sizes, settings: Settings, prompt: int, rows: int) -> Batch:
    """The largest micro-batch with prompts of that length."""
    return largest_batch(
        sizes.packed,
        settings.train.token_budget,
        prompt,
        settings.engine.max_new_tokens,
        settings.train.rollouts_per_prompt,
        rows,
    )


def rows_here(settings: Settings, processes: int, minibatches: int = 1) -> int:
    """Rollouts of one process in one mini-batch."""
    train = settings.train
    return -(-train.prompts_per_step // (processes * minibatches)) * train.rollouts_per_prompt


def cast_weights(sizes: Sizes, settings: Settings) -> int:
    """Bytes of the layers' matrices in bfloat16; 0 where they are used as they are."""
    return number_bytes(settings) * sizes.matrices if number_bytes(settings) < FLOAT else 0


def scoring(sizes: Sizes, settings: Settings, lengths: Lengths, place: Place) -> dict[str, int]:
    """A pass without gradients: student, teacher or reference over a micro-batch."""
    number, rows = number_bytes(settings), rows_here(settings, place.processes)
    prompt = max(lengths.prompt, lengths.context if settings.method.needs_teacher else 0)
    batch = batch_of(sizes, settings, prompt, rows)
    tensor, _ = chunk(sizes, batch, place.kind)
    cached = cast_weights(sizes, settings) // (
        sizes.layers if sizes.adapted else 1
    )  # frozen weights are cast one by one
    runs = in_forward(sizes, batch, number, place.kind) + hidden(sizes, batch)
    return {"weight copies": cached, "activations": runs, "logits": WIDE["plain"] * tensor}


def wide(settings: Settings) -> int:
    """Tensors of tokens x vocabulary that the method's loss holds at once."""
    if settings.method.distils:
        return WIDE["distilled"]
    return WIDE["term" if settings.method.auxiliary else "plain"]


def gradient(sizes: Sizes, settings: Settings, lengths: Lengths, place: Place) -> list[dict[str, int]]:
    """The moments of a micro-batch's forward and backward pass that can be the largest."""
    number, kind = number_bytes(settings), place.kind
    batch = batch_of(sizes, settings, lengths.prompt, rows_here(settings, place.processes, settings.train.minibatches))
    cast, one = cast_weights(sizes, settings), kept_by_layer(sizes, batch, number, kind)
    again = settings.model.gradient_checkpointing
    kept = kept_once(sizes, batch)
    kept += sizes.layers * (batch.tokens * sizes.hidden * FLOAT if again else one)
    if settings.method.distils:
        kept += hidden(sizes, batch)  # what the teacher's output layer reads
    tensor, several = chunk(sizes, batch, kind)
    head = 0 if sizes.adapted else FLOAT * sizes.head
    gradients = {"gradients": -(-FLOAT * sizes.trained // shards(place))}
    saved = 0 if again else cast
    at_layer = kept + in_backward(sizes, batch, number, kind) + (one if again else 0)
    recast = cast // sizes.layers if again else cast
    moments = [
        # the output layer's backward pass: its gradient, and of a further piece
        {"weight copies": saved, "activations": kept, "logits": wide(settings) * tensor + head * (2 if several else 1)},
        # a layer's; a tied output layer's gradient waits for the embedding's
        {"weight copies": recast, "activations": at_layer, "logits": head if sizes.tied else 0},
    ]
    if again:
        runs = kept + in_forward(sizes, batch, number, kind)
        moments.append({"weight copies": cast // (sizes.layers if sizes.adapted else 1), "activations": runs})
    return [gradients | moment for moment in moments]


def optimiser_step(sizes: Sizes, place: Place) -> dict[str, int]:
    """AdamW: all tensors at once on a GPU, one after the other on a CPU."""
    trained = FLOAT * sizes.trained // shards(place)
    more = trained if place.kind != "cpu" else 2 * FLOAT * sizes.largest // shards(place)
    return {"gradients": trained, "temporaries": more}


def fits(found: Estimate, available: int) -> bool:
    """Whether a device with so many free bytes holds it."""
    return found.peak <= available


def parts_of(found: Estimate) -> list[str]:
    """Names of the parts that are somewhere above zero, the largest of the worst phase first."""
    names: dict[str, Any] = {}
    for parts in found.phases.values():
        names |= {name: None for name, size in parts.items() if size}
    worst = found.phases[found.worst]
    return sorted(names, key=lambda name: -worst.get(name, 0))
