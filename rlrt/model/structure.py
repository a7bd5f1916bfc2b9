"""Which models the quick paths serve, read from a model's config and modules; no weights are needed (``meta`` will do).

Packed rows (``rlrt.model.packed``) need full causal attention in every layer, through transformers' attention interface. The
quick decoder (``rlrt.model.dense``) computes the layers itself, and needs to know all that is in them. Both functions return
the reason against it, in words that end a sentence. What modules do not show (a multiplier, a norm of another kind) is found by
the numerical check of ``rlrt.model.paths``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
"""Modules of a layer that the quick decoder computes: norm, attention, norm, feed-forward."""
BASE = {"embed_tokens", "layers", "norm", "rotary_emb"}
"""Modules of a model without its output layer that the quick decoder computes."""
ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose cosines and sines do not depend on a sequence's length."""
KINDS = {"sliding_attention": "sliding windows", "chunked_attention": "attention in chunks"}
"""Words for kinds of layers."""


def why_not_packed(model: Any, kernel: str) -> str:
    """Return why packed rows cannot be run; empty if they can.

    Args:
        kernel: ``model.attn_implementation``.
    """
    config = model.config.get_text_config()
    if kernel != "sdpa":
        return f"model.attn_implementation is {kernel}"
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        return "its attention is not causal"
    if getattr(config, "attn_logit_softcapping", None):
        return "config caps attention's scores (attn_logit_softcapping)"
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return "it has no list of layers"
    if against := windows(config, len(layers)):
        return against
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through transformers' attention interface"
    return next(filter(None, map(odd_layer, layers)), "")


def windows(config: Any, count: int) -> str:
    """Return which layers do not attend to all tokens, if any."""
    kinds = list(getattr(config, "layer_types", None) or [])
    other = [kind for kind in kinds if kind != "full_attention"]
    if other:
        named = {KINDS.get(kind, str(kind).replace("_", " ")): None for kind in other}
        return f"config has {' and '.join(named)} in {len(other)} of {count} layers"
    if not kinds and getattr(config, "sliding_window", None):
        return f"config has sliding windows in {count} layers"
    if getattr(config, "attention_chunk_size", None):
        return f"config has attention in chunks in {count} layers"
    return ""


def odd_layer(layer: nn.Module) -> str:
    """Return what a layer has besides attention by four projections and a gated feed-forward network, if anything."""
    attention, inner = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or not all(isinstance(getattr(attention, n, None), nn.Linear) for n in PROJECTIONS):
        return f"its layers have no attention with {', '.join(PROJECTIONS)}"
    if getattr(attention, "sliding_window", None) or not getattr(attention, "is_causal", True):
        return "its attention is not over all tokens before"
    if inner is None or not all(isinstance(getattr(inner, n, None), nn.Linear) for n in FEED_FORWARD):
        return f"its layers have no feed-forward network with {', '.join(FEED_FORWARD)}"
    for name, module in layer.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if own and not isinstance(module, nn.Linear) and any(p.dim() != 1 or n != "weight" for n, p in own.items()):
            return f"its layers have {', '.join(own)} of {type(module).__name__} ({name})"
    return ""


def why_not_quick(model: Any) -> str:
    """Return why the quick decoder cannot run a model whose rows can be packed; empty if it can."""
    config, base = model.config.get_text_config(), model.base_model
    layers, first = base.layers, base.layers[0]
    names = {name for name, _ in base.named_children()}
    if names != BASE:
        return f"it has other modules than the decoder's: {', '.join(sorted(names ^ BASE))}"
    if type(base.embed_tokens) is not nn.Embedding or not isinstance(model.get_output_embeddings(), nn.Linear):
        return "its embedding or output layer is of another kind"
    names = {name for name, _ in first.named_children()}
    if names != LAYER:
        return f"its layers have other modules than the decoder's: {', '.join(sorted(names ^ LAYER))}"
    names = {name for name, _ in first.self_attn.named_children()} - {*PROJECTIONS}
    if names not in (set(), {"q_norm", "k_norm"}):
        return f"its attention has {', '.join(sorted(names))}"
    if names and first.self_attn.q_norm.weight.numel() != first.self_attn.head_dim:
        return "the norms of its queries and keys are over all heads together"
    norms = [base.norm, first.input_layernorm, first.post_attention_layernorm]
    norms += [getattr(first.self_attn, name) for name in names]
    found = {epsilon_of(norm) for norm in norms}
    if None in found or len(found) > 1:
        return f"its norms ({type(base.norm).__name__}) are not of one kind with one epsilon"
    if getattr(config, "hidden_act", None) != "silu":
        return f"its activation is {getattr(config, 'hidden_act', None)}"
    return rotary(config) or unequal(layers)


def rotary(config: Any) -> str:
    """Return what the quick decoder cannot do about a model's positions, if anything."""
    given = getattr(config, "rope_parameters", None) or {}
    if given.get("rope_type") not in ROTARY:
        return f"its rotary positions are of type {given.get('rope_type')}"
    parts = (given.get("partial_rotary_factor"), getattr(config, "partial_rotary_factor", None))
    return "only a part of a head is rotated" if any(part not in (None, 1.0) for part in parts) else ""


def epsilon_of(norm: Any) -> float | None:
    """Return what a norm adds to the mean square; None for a module that is no such norm."""
    found = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return found if isinstance(found, float) and [n for n, _ in norm.named_parameters()] == ["weight"] else None


def unequal(layers: nn.ModuleList) -> str:
    """Return in what the layers of a model differ besides their weights, if in anything."""
    wanted = facts(layers[0])
    for i, layer in enumerate(layers):
        given = facts(layer)
        for name in wanted | given:
            if wanted.get(name) != given.get(name):
                return f"layer {i} differs from layer 0 in {name}"
    return ""


def facts(layer: nn.Module) -> dict[str, Any]:
    """Return the plain values and the shapes in a layer, by name; its number is none of them."""
    found: dict[str, Any] = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    for name, module in layer.named_modules():
        values = {k: v for k, v in vars(module).items() if v is None or isinstance(v, bool | int | float | str)}
        found |= {f"{name}.{k}".lstrip("."): v for k, v in values.items() if k != "layer_idx" and k[0] != "_"}
        found[f"{name} (class)"] = type(module).__name__
    return found
