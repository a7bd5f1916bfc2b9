"""Which way a model is computed: packed rows or the model's own pass, the quick decoder or transformers' cache.

The choice is by structure (``rlrt.model.structure``) and is then confirmed by numbers, once for each config in a process: a
small model of the same class and config, with random weights and two layers, runs a few tokens both ways. So what is in the
config and the code is checked (multipliers, kinds of norms, how logits are made) at no cost for the model itself, whatever its
size and wherever its weights lie.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlrt.distributed import sharding
from rlrt.errors import UserError, first_line
from rlrt.model import packed
from rlrt.model.dense import DenseDecoder
from rlrt.model.forward import Row, evaluating, plain_hidden, response_hidden
from rlrt.model.head import output_layer
from rlrt.model.precision import computing
from rlrt.model.structure import why_not_packed, why_not_quick

log = logging.getLogger("rlrt")
TOLERANCE = 1e-4
"""Largest difference of two ways to compute the same, as a share of the largest number; in float32 it is about 1e-6."""
LAYERS, WIDTH, INNER, VOCABULARY = 2, 64, 48, 64
"""Sizes of the small model of the numerical check, as far as they change no arithmetic."""
PROMPTS = ((3, 9, 27, 17, 51), (5, 15, 45))
RESPONSES = ((0, (7, 21, 63)), (0, (11, 33, 35)), (1, (41, 59, 49)), (1, (13,)))
"""Owner and tokens of each response of the numerical check."""


@dataclass(frozen=True)
class Paths:
    """How a model is computed.

    Attributes:
        attention: ``packed`` or ``plain``.
        decoding: ``quick`` or ``plain``, under ``engine=hf``.
        reasons: why one of them is plain, by its name.
    """

    attention: str = "plain"
    decoding: str = "plain"
    reasons: Mapping[str, str] = field(default_factory=dict)

    def stored(self) -> dict[str, Any]:
        """Return what a run's manifest says of them."""
        return {"attention": self.attention, "decoding": self.decoding, "reasons": dict(self.reasons)}


_known: dict[tuple[type, str, str], Paths] = {}


def paths_of(model: Any) -> Paths:
    """Return what ``choose`` has chosen for a model, or for the one that it is a copy of; plain paths if it was not asked."""
    found = getattr(model, "paths", None)
    return found if isinstance(found, Paths) else Paths()


def decodes_quickly(model: Any) -> bool:
    """True if the quick decoder runs this model."""
    return packed.enabled(model) and paths_of(model).decoding == "quick"


def choose(model: Any) -> Paths:
    """Choose how a model is computed, note it on the model, and let it use packed rows if it can.

    Call it before adapters are added and weights are sharded. The output layer of a model on the ``meta`` device whose rows
    cannot be packed is not checked: call ``check_head`` once it has weights.

    Raises:
        UserError: for a model that changes its logits after its output layer.
    """
    model.paths = paths = foreseen(model, str(model.config._attn_implementation))
    if paths.attention == "packed":
        packed.enable(model)
    elif not next(model.parameters()).is_meta:
        check_head(model)
    return paths


def foreseen(model: Any, kernel: str) -> Paths:
    """Return the paths of a model, whose weights may be on the ``meta`` device.

    Args:
        kernel: ``model.attn_implementation``.

    Raises:
        UserError: for a model that changes its logits after its output layer, if its rows could be packed.
    """
    key = (type(model), kernel, model.config.to_json_string(use_diff=False))
    if key not in _known:
        _known[key] = chosen(model, kernel)
    return _known[key]


def chosen(model: Any, kernel: str) -> Paths:
    """Return the paths by structure, confirmed by numbers."""
    against = why_not_packed(model, kernel)
    if against:
        return Paths(reasons={"attention": against, "decoding": against})
    try:
        small = small_model(model)
    except Exception as error:  # transformers' classes raise many types for a config that they cannot take
        against = f"no small model of its config could be made for the check ({first_line(error)})"
        return Paths(reasons={"attention": against, "decoding": against})
    check_head(small)
    with evaluating(small), torch.no_grad():
        plain = plain_hidden(small, rows())
        packed.enable(small)
        against = difference(lambda: response_hidden(small, rows()), plain)
        if against:
            log.warning("packed attention is not the model's own (%s): the plain path is taken", against)
            return Paths(reasons={"attention": against, "decoding": against})
        against = why_not_quick(small) or why_not_quick(model)
        if not against and (against := difference(lambda: decoded(small), expected(small, plain))):
            log.warning("the quick decoder does not compute this model (%s): the plain one is taken", against)
    if against:
        return Paths("packed", "plain", {"decoding": against})
    return Paths("packed", "quick")


def small_model(model: Any) -> Any:
    """Return a model of the same class and config with few layers and narrow matrices, with random weights on the CPU.

    Its heads are as many and as wide as the model's. Norms, biases and matrices are all random, so none of them can be left out
    unnoticed.
    """
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = min(LAYERS, config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    attention = model.base_model.layers[0].self_attn
    config.head_dim = attention.head_dim
    config.hidden_size, config.intermediate_size, config.vocab_size = WIDTH, INNER, VOCABULARY
    config.pad_token_id = None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        small = type(model)._from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in small.named_parameters():
            drawn = torch.randn(p.shape, generator=generator)
            if p.dim() > 1:
                p.copy_(drawn * (1.0 if "embed" in name else p.shape[-1] ** -0.5))
            else:
                p.copy_(0.2 * drawn + (0.0 if name.endswith("bias") else 1.0))
    for own, copied in zip(model.base_model.layers, small.base_model.layers, strict=False):
        if own.self_attn.head_dim != copied.self_attn.head_dim:
            raise ValueError("its head size is not taken from head_dim")
    return small


def rows() -> list[Row]:
    """Return the sequences of the numerical check: two responses to one prompt, and a response of one token."""
    return [Row(PROMPTS[i], response) for i, response in RESPONSES]


def expected(model: Any, plain_NH: Tensor) -> Tensor:
    """Return the logits of the first three responses' tokens, token by token, from the plain pass: (3, 3, V)."""
    count, width = len(RESPONSES) - 1, len(RESPONSES[0][1])
    return output_layer(model).logits(plain_NH[: count * width]).view(count, width, -1).transpose(0, 1)


def decoded(model: Any) -> Tensor:
    """Return the same logits by the quick decoder: the prompts, and then two steps."""
    token_BT = torch.tensor([response for _, response in RESPONSES[:-1]])
    decoder = DenseDecoder(model)
    found = [decoder.start(PROMPTS, [2, 1])]
    found += [decoder.step(token_B) for token_B in token_BT[:, :-1].t()]
    return torch.stack(found)


def difference(compute: Any, plain: Tensor) -> str:
    """Return by how much a quick path differs from the plain one, in words; empty if it does not."""
    try:
        gap = float((compute() - plain).abs().max() / plain.abs().max())
    except Exception as error:  # whatever a model of another structure makes of it
        return f"it fails: {first_line(error)}"
    return "" if gap < TOLERANCE else f"they differ by {gap:.2g} of the largest number; allowed: {TOLERANCE:g}"


@torch.no_grad()
def check_head(model: Any) -> None:
    """Refuse a model that changes its logits after its output layer (soft-capping, scaling).

    The trainer applies the output layer to the response's hidden states; the engine calls the whole model. Both must
    give the same distribution.

    Raises:
        UserError: naming the difference.
    """
    ids = torch.tensor([[0, 1]], device=next(model.parameters()).device)
    read: list[Tensor] = []
    hook = model.base_model.register_forward_hook(lambda module, given, output: read.append(output.last_hidden_state))

    def both() -> tuple[Tensor, Tensor]:
        whole = model(ids, use_cache=False).logits[0]
        return whole, model.get_output_embeddings()(read[0][0])

    try:
        with evaluating(model), computing(model):  # of sharded weights all ranks run it together
            whole, head = (logits.float().log_softmax(-1) for logits in sharding.run(model, both))
    finally:
        hook.remove()
    gap = float((whole - head).abs().max())
    if not gap < 1e-3:
        raise UserError(
            f"model.path: this model ({type(model).__name__}) changes its logits after its output layer (log-probabilities "
            f"differ by {gap:.3g} nats), which the trainer does not do; use a model that does not (docs/models.md)."
        )
