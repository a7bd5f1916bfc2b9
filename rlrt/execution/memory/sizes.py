"""Sizes that a model's ``config.json`` determines: the number of weights, and the widths of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlrt.model.lora import adapters, add_adapters
from rlrt.model.paths import foreseen


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights, and widths in numbers per token.

    Attributes:
        weights: all weights, a tied output layer once, adapters included.
        trained: weights with a gradient.
        matrices: weights of the decoder layers' matrices without adapters, which a pass in bfloat16 copies.
        layers: number of decoder layers.
        layer: weights of one decoder layer, the largest.
        head: weights of the output layer.
        tied: True if input embedding and output layer share their weights.
        largest: weights of the largest trained tensor.
        hidden, inner: widths of the residual stream and of the feed-forward layer.
        queries, keys: widths of all query heads together, and of all key heads together (values have the same).
        heads, key_heads: numbers of query heads and of key heads.
        head_size: width of one head.
        vocabulary: number of entries.
        adapted: True if adapters are trained instead of the weights.
        packed: True if ``rlrt.model.packed`` runs this model: rows without padding, each prompt once.
        quick: True if ``rlrt.model.dense`` decodes it.
    """

    weights: int
    trained: int
    matrices: int
    layers: int
    layer: int
    head: int
    tied: bool
    largest: int
    hidden: int
    inner: int
    queries: int
    keys: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    adapted: bool
    packed: bool
    quick: bool

    @property
    def embeddings(self) -> int:
        """Return the weights of input embedding and output layer together."""
        return self.head * (1 if self.tied else 2)


def sizes_of(
    config: Any, attention: str = "sdpa", lora: int | None = None, targets: Sequence[str] = (), alpha: float = 1.0
) -> Sizes:
    """Return the sizes of a model with this transformers config, built on the meta device.

    Args:
        config: transformers config of a causal language model.
        attention: ``model.attn_implementation``.
        lora, targets, alpha: ``model.lora``, ``model.lora_targets`` and ``model.lora_alpha``.

    Raises:
        UserError: if no layer has one of the targets' names, and for a model that changes its logits after its output layer.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings().weight
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    matrices = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, torch.nn.Linear))
    paths = foreseen(model, attention)  # before adapters change the layers
    if lora is not None:
        add_adapters(model, lora, alpha, targets, 0)
    text = config.get_text_config()
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    return Sizes(
        weights=sum(p.numel() for p in model.parameters()),
        trained=sum(trained),
        matrices=matrices,
        layers=len(blocks),
        layer=max(sum(p.numel() for p in block.parameters()) for block in blocks),
        head=head.numel(),
        tied=head is model.get_input_embeddings().weight,
        largest=max(trained),
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        queries=heads * head_size,
        keys=key_heads * head_size,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        vocabulary=text.vocab_size,
        adapted=bool(adapters(model)),
        packed=paths.attention == "packed",
        quick=paths.decoding == "quick",
    )
