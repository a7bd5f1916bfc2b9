"""Low-rank adapters (arXiv 2106.09685), by peft: the base weights are frozen, and small matrix products beside them are
trained."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlrt.distributed.sharding import whole
from rlrt.errors import UserError
from rlrt.seeds import derive

NAME = "default"
"""Name of the only adapter, in peft."""


def add_adapters(model: Any, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
    """Add an adapter to every target layer, in place, and freeze all other weights.

    A new adapter changes no output: B is zero, and A is drawn as peft draws it, as a function of ``seed`` alone. Dropout is off
    because it would make the ratio of new to old log-probabilities noise.

    Raises:
        UserError: if peft is not installed, or no layer has one of the names in ``targets``.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    scale: Any = alpha  # peft's annotation says int; it takes any number
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets), lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "lora"))
        try:
            inject_adapter_in_model(config, model, NAME)
        except ValueError:
            raise UserError(
                f"model.lora_targets: none of {', '.join(targets)} is a layer of this model ({type(model).__name__})."
            ) from None
    model.requires_grad_(False)
    for adapter in adapters(model).values():
        adapter.requires_grad_(True)


def drawn(model: Any, rank: int, alpha: float, targets: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Return the adapters' weights that ``add_adapters`` gives a model, for one that lies on the meta device.

    A stand-in draws them by the same calls; its base weights are views of one number and take no memory.
    """
    stand_in = copy.deepcopy(model, {id(p): nn.Parameter(torch.zeros(()).expand(p.shape)) for p in model.parameters()})
    add_adapters(stand_in, rank, alpha, targets, seed)
    return {name: weight.detach() for name, weight in adapters(stand_in).items()}


def without_adapters(model: Any) -> Any:
    """Return a model after putting its base layers back in the place of the adapted ones."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_delta_weight"):
            model.set_submodule(name, module.base_layer)
    return model


def base_name(name: str) -> str:
    """Return the base model's name of a weight, whether an adapter wraps it or not."""
    return name.replace(".base_layer.", ".")


def check_peft() -> None:
    """Refuse an environment without peft.

    Raises:
        UserError: naming what to install.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError(
            "model.lora needs the package peft, which is not installed in this environment; install it with: "
            "make setup EXTRAS=lora."
        )


def adapters(model: Any) -> dict[str, Tensor]:
    """Return the adapters' weights by name; {} for a model without adapters."""
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


@torch.no_grad()
def weight_of(linear: Any) -> Tensor:
    """Return the effective weight of a linear layer, its adapter's product included."""
    if not hasattr(linear, "get_delta_weight"):
        return whole(linear.weight)
    product = whole(linear.lora_B[NAME].weight) @ whole(linear.lora_A[NAME].weight)
    return whole(linear.base_layer.weight) + product * linear.scaling[NAME]


def base_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name in the model, tensor) for every weight of the base model, as it lies there; tied weights once."""
    first_names = {name for name, _ in model.named_parameters()}
    every_name = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied_names = every_name - first_names  # a tied output layer's second name
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name and name not in tied_names:
            yield name, tensor


@torch.no_grad()
def named_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for every full weight with adapters merged, under the base model's names.

    If the weights are sharded over several ranks, all ranks must iterate together.
    """
    for name, tensor in base_weights(model):
        if name.endswith(".base_layer.weight"):
            tensor = weight_of(model.get_submodule(name.removesuffix(".base_layer.weight")))
        yield base_name(name), whole(tensor).detach()
