"""One model on several ranks: replicas with summed gradients (DDP, through accelerate), or sharded weights (FSDP2).

Both wrap an ``Entry``, through which every joint forward pass of all ranks goes. Under ``fsdp`` each layer's weights are
gathered when the layer runs, in the precision of its products; those of the last norm and the output layer are gathered for a
pass and, where it has one, its backward pass.
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
        """Call ``function`` and return its outputs; views are cloned, because FSDP2 marks outputs in place.

        The trainer reads the output layer's weight without calling the layer, so no hook of FSDP2 sees it: it is gathered here,
        and again before the backward pass if it was dropped in between.
        """
        head = self.model.get_output_embeddings()
        if not hasattr(head, "unshard"):
            return tuple(x.clone() if x._is_view() else x for x in function())
        head.unshard()
        outputs = tuple(x.clone() if x._is_view() else x for x in function())

        def again(_: Tensor) -> None:
            head.unshard()

        for output in outputs:
            if output.requires_grad:
                output.register_hook(again)
        return outputs


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


def share_fsdp(model: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Shard a model over the ranks; this rank keeps its shard alone, in float32 on ``device``.

    An embedding and an output layer that are not tied are gathered each by itself.

    Args:
        model: its weights may lie on the meta device: then the shards do, until ``fill``.
        dtype: precision of matrix products. Weights are gathered in it; gradients are summed over the ranks in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # autocast stays: the residual stream is float32 and what enters a product is cast there, as in a run of one process
    half = None if dtype == torch.float32 else dtype
    precision = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    entry, embedding, head = Entry(model), model.get_input_embeddings(), model.get_output_embeddings()
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
    if type(head) is nn.Linear and head.weight is not embedding.weight:
        fully_shard(embedding, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        fully_shard(head, mesh=mesh, reshard_after_forward=False, mp_policy=precision)
    fully_shard(entry, mesh=mesh, reshard_after_forward=False, mp_policy=precision)
    if half is not None:
        # else the residual stream would have the gathered weights' precision
        embedding.register_forward_hook(to_float32)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    ENTRIES[model] = entry


def to_float32(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    """Return a layer's output in float32 (a forward hook)."""
    return output.float()


@torch.no_grad()
def fill(model: Any, device: torch.device, value: Callable[[str, Any], Any]) -> None:
    """Put weights in place of those on the meta device, in the model's own layout; tied weights stay tied.

    Args:
        value: from a weight's name and its empty tensor on ``device`` to the weight: the same tensor filled, or another one of
            its layout.
    """
    made: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is None or not weight.is_meta:
                continue
            if id(weight) not in made:
                empty = torch.empty_like(weight, device=device)
                filled = value(f"{prefix}.{name}", empty)
                made[id(weight)] = nn.Parameter(filled, requires_grad=weight.requires_grad)
            module._parameters[name] = made[id(weight)]


def rows_of(weight: Any) -> tuple[int, int]:
    """Return the first row of a full weight that this rank's shard holds, and the row after its last one.

    FSDP2 cuts the first dimension as ``torch.chunk`` does.
    """
    mesh, count = weight.device_mesh, weight.shape[0]
    each = -(-count // mesh.size())
    first = min(mesh.get_local_rank() * each, count)
    return first, min(first + each, count)


def run(model: Any, function: Callable[[], tuple[Tensor, ...]], keeps_head: bool = False) -> tuple[Tensor, ...]:
    """Run a forward pass of a model: jointly with the other ranks if the weights are sharded or the gradients summed.

    Args:
        keeps_head: leave a sharded output layer gathered after a pass without gradient, until the next ``drop_gathered``.
    """
    entry = ENTRIES.get(model)
    if entry is None or not (torch.is_grad_enabled() or is_sharded(model)):
        return function()
    outputs: tuple[Tensor, ...] = entry(function)
    if not torch.is_grad_enabled() and not keeps_head:
        drop_gathered(model)
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
        for unit in (entry, model.get_output_embeddings()):
            if hasattr(unit, "reshard"):
                unit.reshard()


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
