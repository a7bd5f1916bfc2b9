"""One model on several ranks: replicas with summed gradients (DDP, through accelerate), or sharded weights (FSDP2).

Both wrap an ``Entry``, through which every joint forward pass of all ranks goes. Under ``fsdp`` each layer's weights are
gathered when the layer runs; those of embedding, last norm and output layer stay gathered from one forward pass until the next
``drop_gathered``.
The same calls run on CPUs (gloo) and on GPUs (NCCL), so the tests on CPUs run the code that GPUs run.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

ENTRIES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The wrapped ``Entry`` of each model that is replicated or sharded over several ranks."""


class Entry(nn.Module):
    """A forward pass made of any function of a model: DDP and FSDP need to see its begin and end."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Call ``function`` and return its outputs; views are cloned, because FSDP2 marks outputs in place."""
        return tuple(x.clone() if x._is_view() else x for x in function())


def share_ddp(model: Any) -> None:
    """Replicate a model over the ranks: from now on gradients are summed over ranks; the weights are rank 0's."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    device = next(model.parameters()).device
    no_broadcast = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True
    )  # buffers never change, and ranks may run different numbers of passes
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[no_broadcast])
    with warnings.catch_warnings():  # accelerate has no other option for it
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        ENTRIES[model] = accelerator.prepare_model(Entry(model), device_placement=False)


def share_fsdp(model: Any, device: torch.device) -> None:
    """Shard a model over the ranks; this rank keeps its shard alone, on ``device``."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    entry = Entry(model)
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(entry, mesh=mesh, reshard_after_forward=False)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    ENTRIES[model] = entry


def run(model: Any, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Run a forward pass of a model: jointly with the other ranks if the weights are sharded or the gradients summed."""
    entry = ENTRIES.get(model)
    if entry is None or not (torch.is_grad_enabled() or is_sharded(model)):
        return function()
    outputs: tuple[Tensor, ...] = entry(function)
    return outputs


def is_sharded(model: Any) -> bool:
    """True if this rank holds only a shard of the weights."""
    return hasattr(ENTRIES.get(model), "reshard")


def is_share(tensor: Any) -> bool:
    """True if a tensor is this rank's shard of a larger one."""
    return hasattr(tensor, "full_tensor")


@contextlib.contextmanager
def gradients_stay(model: Any, hold: bool) -> Iterator[None]:
    """Delay the exchange of gradients if ``hold`` is True: a later pass's exchange includes this pass's gradients (DDP)."""
    entry = ENTRIES.get(model)
    if hold and entry is not None and hasattr(entry, "no_sync"):
        with entry.no_sync():
            yield
    else:
        yield


def drop_gathered(model: Any) -> None:
    """Drop gathered copies of the weights; call after every update of the weights."""
    entry = ENTRIES.get(model)
    if entry is not None and hasattr(entry, "reshard"):
        entry.reshard()


def whole(tensor: Any) -> Tensor:
    """Return a tensor's full value; if it is sharded, all ranks gather it together."""
    value: Tensor = tensor.full_tensor() if is_share(tensor) else tensor
    return value


def like(target: Any, value: Tensor) -> Tensor:
    """Return the full tensor ``value`` in the target's layout: this rank's shard if the target is sharded."""
    if not is_share(target) or value.dim() == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    moved = value.to(device=target.device, dtype=value.dtype)
    shared: Tensor = distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=None)
    return shared


@torch.no_grad()
def put(targets: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    """Copy full weights into a model's parameters, name by name."""
    for name, target in targets.items():
        target.copy_(like(target, values[name]))
