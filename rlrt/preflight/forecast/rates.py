"""What a card reaches: the table of rates that a forecast multiplies with, each with its source.

Every rate of a card is assumed, never measured, unless its source says otherwise; an H200's are those of Qwen3-1.7B on the one
card that was ever at hand (docs/gpu.md). ``python -m benchmarks.gpu --rates FILE`` measures some of them on a card and writes
FILE, which ``python -m rlrt.preflight --rates FILE`` and ``python -m benchmarks.throughput --rates FILE`` take in their place.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, nearest
from rlrt.preflight.slurm import WRITING

ASSUMED, SHEET = "assumed", "data sheet"
"""Sources of a rate besides ``measured by COMMAND on DATE``."""


@dataclass(frozen=True)
class Rate:
    """A number with its source.

    Attributes:
        value: in the unit that ``MEANINGS`` gives.
        source: ``ASSUMED``, ``SHEET``, or ``measured by COMMAND on DATE``.
    """

    value: float
    source: str = ASSUMED

    @property
    def measured(self) -> bool:
        """True if the rate was measured."""
        return self.source.startswith("measured")


@dataclass(frozen=True)
class Rates:
    """The rates of one kind of card; ``MEANINGS`` says what each is."""

    card: str
    memory: Rate
    bandwidth: Rate
    linear_bf16: Rate
    linear_float32: Rate
    masked_float32: Rate
    causal_bf16: Rate
    causal_float32: Rate
    vllm_share: Rate
    vllm_token_s: Rate
    hf_share: Rate
    hf_layer_s: Rate
    packing_token_s: Rate
    mask_pair_s: Rate
    disk: Rate

    def named(self) -> dict[str, Rate]:
        """Return every rate by its name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "card"}

    def source(self) -> str:
        """Return where the rates of the card's computation come from, as words of a sentence."""
        rates = [rate for name, rate in self.named().items() if name in OF_THE_CARD]
        count = sum(rate.measured for rate in rates)
        if count == len(rates):
            return f"rates measured on an {self.card}"
        if count:
            return f"rates of an {self.card}, {count} of {len(rates)} measured and the others assumed"
        return f"assumed rates of an {self.card}, never measured"


MEANINGS: Mapping[str, tuple[str, str]] = {
    "memory": ("bytes", "memory of the card"),
    "bandwidth": ("bytes/s", "bandwidth of its memory"),
    "linear_bf16": ("operations/s", "what the matrices of the layers and the output layer reach in bfloat16"),
    "linear_float32": ("operations/s", "the same in float32 (TF32 products)"),
    "masked_float32": (
        "operations/s",
        "attention under a mask, counted on the full square of queries and keys, float32",
    ),
    "causal_bf16": ("operations/s", "attention without a mask, counted on what causality leaves, bfloat16"),
    "causal_float32": ("operations/s", "the same in float32"),
    "vllm_share": ("share", "of the bandwidth, while vLLM decodes"),
    "vllm_token_s": ("s", "of vLLM's scheduler and sampler for each decoded token of all rows"),
    "hf_share": ("share", "of the bandwidth, while engine=hf decodes"),
    "hf_layer_s": ("s", "of kernel launches for each layer and decoded token of all rows, engine=hf"),
    "packing_token_s": ("s", "of a CPU core for each packed token"),
    "mask_pair_s": ("s", "of a CPU core for each pair of query and key under a mask (float32)"),
    "disk": ("bytes/s", "at which a checkpoint is written to a slow shared disk"),
}
"""Unit and meaning of each rate."""
OF_THE_CARD = (
    "linear_bf16",
    "causal_bf16",
    "vllm_share",
    "vllm_token_s",
    "hf_share",
    "hf_layer_s",
)
"""The rates that must be measured on a card in bfloat16 before a forecast for it is more than an assumption."""

PACKED = "measured by python -m benchmarks.throughput --packing on 2026-11-27 (AMD EPYC)"
"""Source of the rates of packing."""
H100 = Rates(
    card="H100",
    memory=Rate(85.5e9, SHEET),
    bandwidth=Rate(3.35e12, SHEET),
    linear_bf16=Rate(300e12),  # of 989: eager layers around a float32 residual stream
    linear_float32=Rate(120e12),
    masked_float32=Rate(30e12),
    causal_bf16=Rate(350e12),
    causal_float32=Rate(30e12),
    vllm_share=Rate(0.65),
    vllm_token_s=Rate(2e-3),  # each request has a generator of its own: vLLM samples row after row
    hf_share=Rate(0.5),  # below vLLM's: the cache is read with its room to grow
    hf_layer_s=Rate(2.1e-4),  # 5.8 ms for 28 layers
    packing_token_s=Rate(6.6e-8, PACKED),
    mask_pair_s=Rate(5.5e-10, PACKED),
    disk=Rate(float(WRITING)),
)
"""NVIDIA H100 SXM, 80 GB."""
PER_H100 = {"H200": (1.0, 141e9, 4.8e12), "A100": (312 / 989, 85.1e9, 2.0e12)}
"""Other cards: share of an H100's bfloat16 peak, bytes, bytes per second, by the maker's data sheets (SXM; A100 of 80 GB)."""


def scaled(card: str) -> Rates:
    """Return an H100's rates scaled to another card by the data sheets' peaks."""
    share, memory, bandwidth = PER_H100[card]
    operations: dict[str, Any] = {
        name: Rate(rate.value * share) for name, rate in H100.named().items() if MEANINGS[name][0] == "operations/s"
    }
    return dataclasses.replace(
        H100, card=card, memory=Rate(memory, SHEET), bandwidth=Rate(bandwidth, SHEET), **operations
    )


SEEN = "measured by python -m benchmarks.gpu on 2026-11-27"
"""Source of an H200's rates."""
H200 = dataclasses.replace(
    scaled("H200"),
    linear_bf16=Rate(262e12, SEEN),
    causal_bf16=Rate(94e12, SEEN),
    hf_share=Rate(0.276, SEEN),
    hf_layer_s=Rate(3.4e-4, SEEN),
)
RATES: Mapping[str, Rates] = {"H100": H100, **{card: scaled(card) for card in PER_H100}, "H200": H200}
"""The table, by a word of the card's name."""


def rates_of(card: str) -> Rates | None:
    """Return the rates of a card by its name (``torch.cuda.get_device_name``); None for a card that the table lacks."""
    return next((rates for word, rates in RATES.items() if word in card), None)


def rates_file(card: str, values: Mapping[str, float], command: str, date: str) -> dict[str, Any]:
    """Return the content of a file of measured rates.

    Args:
        card: the card's name.
        values: measured rates by name.
        command, date: how and when they were measured.
    """
    source = f"measured by {command} on {date}"
    return {"card": card, "rates": {name: {"value": value, "source": source} for name, value in values.items()}}


def read_rates(file: Path) -> Rates:
    """Return the rates of a file that ``python -m benchmarks.gpu --rates FILE`` wrote; the table has those that it lacks.

    For a card that the table does not have, those are an H100's, and ``memory`` and ``bandwidth`` must be in the file.

    Raises:
        UserError: for a file that cannot be read, an unknown rate, or a value that is no positive number.
    """
    try:
        content = json.loads(file.read_text())
        card, given = str(content["card"]), dict(content["rates"])
        measured: dict[str, Any] = {
            str(name): Rate(float(one["value"]), str(one["source"])) for name, one in given.items()
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--rates: expected the file that python -m benchmarks.gpu --rates FILE writes, got {file} "
            f"({type(error).__name__}: {error})."
        ) from None
    for name, rate in measured.items():
        if name not in MEANINGS:
            raise UserError(f"--rates: {file} has the rate {name!r}, which there is not.{nearest(name, MEANINGS)}")
        if not (rate.value > 0 and math.isfinite(rate.value)):
            raise UserError(f"--rates: expected a number above 0 as {name} in {file}, got {rate.value}.")
    base = rates_of(card)
    if base is None and not {"memory", "bandwidth"} <= {*measured}:
        raise UserError(
            f"--rates: {file} lacks memory (bytes) and bandwidth (bytes/s), and the table has no {card}; add both to its "
            'rates, as {"value": 80e9, "source": "data sheet"}.'
        )
    kept = dataclasses.replace(base or H100, card=base.card if base else card)
    return dataclasses.replace(kept, **measured)
