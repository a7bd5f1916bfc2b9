"""One model on several processes: copies with summed gradients (DDP, through accelerate), or its weights in shares (FSDP2).

Both wrap an ``Entry``, through which every forward pass goes that several processes make together. Under ``fsdp`` each layer's
weights are gathered when it runs; those of embedding, last norm and output layer from the first pass after ``settle``
until the next.
The same calls run on CPUs (gloo) and on GPUs (NCCL), so what the tests see is what ships.
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
"""The wrapped ``Entry`` of a model that several processes share."""


class Entry(nn.Module):
    """A forward pass made of any function of a model: what DDP and FSDP need to see begin and end."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Call it. Nothing that it gives is a view of something else: FSDP2 marks it in place."""
        return tuple(x.clone() if x._is_view() else x for x in function())


def share_ddp(model: Any) -> None:
    """Sum the gradients of this model over the processes from now on; weights are rank 0's."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    device = next(model.parameters()).device
    plain = DistributedDataParallelKwargs(broadcast_buffers=False)  # they never change, and passes may differ in number
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[plain])
    with warnings.catch_warnings():  # accelerate knows no other word for it
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        ENTRIES[model] = accelerator.prepare_model(Entry(model), device_placement=False)


def share_fsdp(model: Any, device: torch.device) -> None:
    """Keep this process's share of the weights alone, on its device."""
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
    """A forward pass of a model: together with the other processes where they share its weights, or will its gradients."""
    entry = ENTRIES.get(model)
    if entry is None or not (torch.is_grad_enabled() or is_sharded(model)):
        return function()
    found: tuple[Tensor, ...] = entry(function)
    return found


def is_sharded(model: Any) -> bool:
    """Whether this process holds a share of the weights alone."""
    return hasattr(ENTRIES.get(model), "reshard")


def is_share(tensor: Any) -> bool:
    """Whether a tensor is a share of one that lies on several processes."""
    return hasattr(tensor, "full_tensor")


@contextlib.contextmanager
def gradients_stay(model: Any, here: bool) -> Iterator[None]:
    """Where ``here``, gradients of this pass are not exchanged yet: a later pass's exchange takes them along (DDP)."""
    entry = ENTRIES.get(model)
    if here and entry is not None and hasattr(entry, "no_sync"):
        with entry.no_sync():
            yield
    else:
        yield


def settle(model: Any) -> None:
    """The weights have changed: what was gathered of the old ones is let go."""
    entry = ENTRIES.get(model)
    if entry is not None and hasattr(entry, "reshard"):
        entry.reshard()


def whole(tensor: Any) -> Tensor:
    """A tensor's whole value; gathered, by all processes together, where each holds a share."""
    value: Tensor = tensor.full_tensor() if is_share(tensor) else tensor
    return value


def like(target: Any, value: Tensor) -> Tensor:
    """``value``, whole, as the target holds its own: this process's share where the target is one."""
    if not is_share(target) or value.dim() == 0:
        return value
    from torch.distributed.tensor import distribute_tensor

    moved = value.to(device=target.device, dtype=value.dtype)
    shared: Tensor = distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=None)
    return shared


@torch.no_grad()
def put(targets: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    """Copy whole weights into a model's, name by name."""
    for name, target in targets.items():
        target.copy_(like(target, values[name]))
