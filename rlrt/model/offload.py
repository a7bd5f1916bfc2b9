"""Tensors in the host's memory while a GPU has no use for them: AdamW's moments, and what the backward pass recomputes from.

A CPU's memory is the host's: there nothing is moved. No card has run this.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from rlrt.distributed.sharding import is_share

LEAST = 2**20
"""Bytes of the smallest saved tensor that goes to the host."""


class Moments:
    """The moments of an optimiser, in the host's memory between two updates.

    Copies to the host go to buffers that are kept, pinned where the moments come from a GPU. They follow each other on the
    current stream, and the host waits for the last one. Copies back are ordered by the stream alone.
    """

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self._optimiser = optimiser
        self._buffers: dict[tuple[int, str], Tensor] = {}
        self._home: dict[tuple[int, str], torch.device] = {}

    def rest(self) -> None:
        """Copy the moments to the host and give up their memory on the device; nothing if they are there already."""
        waits = False
        for place, values, name in self._moments():
            if place in self._home:
                continue
            moment = local(values[name])
            if place not in self._buffers:
                self._buffers[place] = torch.empty(
                    moment.shape, dtype=moment.dtype, device="cpu", pin_memory=moment.device.type == "cuda"
                )
            self._buffers[place].copy_(moment, non_blocking=True)
            self._home[place] = moment.device
            waits = waits or moment.device.type == "cuda"
            put(values, name, self._buffers[place])
        if waits:
            torch.cuda.synchronize()

    def wake(self) -> None:
        """Bring the moments back to their device; nothing if they are there."""
        for place, values, name in self._moments():
            device = self._home.pop(place, None)
            if device is not None:
                moment = torch.empty_like(self._buffers[place], device=device, pin_memory=False)
                put(values, name, moment.copy_(self._buffers[place], non_blocking=True))
        self._home.clear()

    def _moments(self) -> list[tuple[tuple[int, str], dict[str, Any], str]]:
        """Every moment as its place in the optimiser, the dict that holds it, and its key there; counters of steps are none."""
        weights = [weight for group in self._optimiser.param_groups for weight in group["params"]]
        return [
            ((index, name), self._optimiser.state[weight], name)
            for index, weight in enumerate(weights)
            for name, value in self._optimiser.state.get(weight, {}).items()
            if isinstance(value, Tensor) and value.dim() > 0
        ]


def local(tensor: Any) -> Tensor:
    """Return this rank's part of a sharded tensor; any other tensor as it is."""
    part: Tensor = tensor.to_local() if is_share(tensor) else tensor
    return part


def put(values: dict[str, Any], name: str, part: Tensor) -> None:
    """Store a tensor, or this rank's part where a sharded one is stored: its mesh would move the part back to the device."""
    if is_share(values[name]):
        values[name]._local_tensor = part
    else:
        values[name] = part


class SavedOnHost(torch.autograd.graph.saved_tensors_hooks):
    """Large tensors that a forward pass saves for its backward pass are kept in the host's memory; weights stay where they are.

    Copies are made on the stream that computes: they wait for nothing on the host, and nothing computes beside them.
    """

    def __init__(self) -> None:
        super().__init__(self._away, self._back)

    @staticmethod
    def _away(tensor: Tensor) -> Any:
        is_weight = isinstance(tensor, torch.nn.Parameter) or (tensor.is_leaf and tensor.requires_grad)
        if is_weight or tensor.nbytes < LEAST:
            return tensor
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda")
        return tensor.device, kept.copy_(tensor, non_blocking=True)

    @staticmethod
    def _back(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, kept = packed
        found: Tensor = torch.empty_like(kept, device=device, pin_memory=False).copy_(kept, non_blocking=True)
        return found


def save_on_host(model: Any) -> None:
    """Let a model's passes with gradient keep in the host's memory what its layers are recomputed from."""
    model.saves_on_host = True


def saving(model: Any) -> AbstractContextManager[Any]:
    """Return the context for a model's forward pass: where it saves what the backward pass needs."""
    wanted = getattr(model, "saves_on_host", False) and torch.is_grad_enabled()
    return SavedOnHost() if wanted else contextlib.nullcontext()
