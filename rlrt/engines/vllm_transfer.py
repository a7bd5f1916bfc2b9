"""Transfer of weights into vLLM: two backends for vLLM's own transfer interface. vLLM's workers import this file.

``rlrt_reference`` takes the trainer's tensors by reference, within one process. ``rlrt_sent`` takes them from any process: as a
safetensors file, or by NCCL as vLLM's own backend receives them, where both sides have GPUs. vLLM's own backends would load a
part of the weights without a word; both of ours check that none is missing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_process_group
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_consumer

from rlrt.engines.keeper import KEEPER, command_of
from rlrt.engines.vllm_common import REFERENCE, SENT, shape_of


@dataclass
class Nothing(WeightTransferInitInfo):  # type: ignore[misc]
    """Empty initialisation: tensors of the same process need none."""


@dataclass
class Tensors(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Names and tensors, read one at a time."""

    weights: Iterable[tuple[str, torch.Tensor]]


@dataclass
class Sent(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A safetensors file that the workers can read, or else what NCCL will bring, in this order."""

    path: str | None = None
    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)


class Transfer(WeightTransferEngine):  # type: ignore[misc]
    """Base of both backends: vLLM's layerwise reload, and a check that no weight is missing.

    Attributes:
        broken: True from the start of an update to its successful end: in between the model computes nonsense.
    """

    init_info_cls = Nothing
    broken = False

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """Do nothing."""

    def start_weight_update(self) -> None:
        """Begin an update; until its end the model cannot be used."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.broken = True
        self.missing = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Any) -> None:
        """Load some of the weights."""
        self.take(self.read(update_info))

    def take(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load weights into the model, and note which."""
        self.missing -= self.model.load_weights(weights)

    @abstractmethod
    def read(self, update_info: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and tensors."""

    def finish_weight_update(self) -> None:
        """Finish the update and reassemble the model.

        Raises:
            RuntimeError: if some weights were not sent (vLLM would continue with the old ones).
        """
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self.missing:
            raise RuntimeError(f"{len(self.missing)} weights were not sent: {', '.join(sorted(self.missing)[:3])}")
        renew_tied_head(self.model)
        self.broken = False

    def shutdown(self) -> None:
        """Do nothing: there is nothing to release."""


class ByReference(Transfer):
    """Transfer of tensors of the same process."""

    update_info_cls = Tensors

    def read(self, update_info: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors in the given order."""
        yield from update_info.weights


class BySending(Transfer):
    """Transfer of a file, read tensor by tensor, or of what NCCL brings, in groups of tensors."""

    init_info_cls = NCCLWeightTransferInitInfo
    update_info_cls = Sent
    _group: Any = None

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Meet the trainer in an NCCL group; not asked where weights come as files."""
        if self._group is not None:  # of an earlier run
            self._group.destroy()
            self._group = None
        self._group = worker_init_process_group(init_info, self.parallel_config)
        self._buffers = init_info.packed_buffer_size_bytes, init_info.packed_num_buffers

    def receive_weights(self, update_info: Sent) -> None:
        """Load some of the weights.

        Raises:
            RuntimeError: if NCCL was asked for before the two sides met.
        """
        if update_info.path is not None:
            self.take(self.read(update_info))
            return
        if self._group is None:
            raise RuntimeError("the trainer sends weights by NCCL and has not met this server's workers")
        size, count = self._buffers
        told = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        packed_nccl_broadcast_consumer(
            iterator=((name, (shape, getattr(torch, dtype))) for name, dtype, shape in told),
            group=self._group,
            src=0,
            post_unpack_func=self.take,
            buffer_size_bytes=size,
            num_buffers=count,
            device=self.device,
        )

    def read(self, update_info: Sent) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors in the file's order."""
        from safetensors import safe_open

        with safe_open(update_info.path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)

    def shutdown(self) -> None:
        """Leave the NCCL group."""
        if self._group is not None:
            self._group.destroy()
            self._group = None


def renew_tied_head(model: Any) -> None:
    """Pack the output layer's weight again: on a CPU vLLM multiplies by a packed copy of it, and a reload does not renew the
    copy if the weight is tied to the embedding."""
    from vllm.platforms import current_platform

    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if current_platform.is_cpu() and head is not None and embedding is not None and head.weight is embedding.weight:
        head.quant_method.process_weights_after_loading(head)


class Extension:
    """Worker extension for ``worker_extension_cls``: naming it makes the worker import the backends."""

    vllm_config: Any
    weight_transfer_engine: Any

    def rlrt_describe(self) -> dict[str, Any]:
        """Return the facts that a trainer checks before it uses this engine."""
        config, transfer = self.vllm_config, self.weight_transfer_engine
        return {
            "shape": shape_of(config.model_config.hf_config),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "logprobs": str(config.model_config.logprobs_mode),
            "backend": config.weight_transfer_config.backend if config.weight_transfer_config else None,
            "max_model_len": config.model_config.max_model_len,
            "broken": bool(getattr(transfer, "broken", False)),
            "cards": cards_here(),
        }


def cards_here() -> list[str]:
    """Return the id of this worker's GPU; [] without one."""
    if not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)]


def end_without_keeper() -> None:
    """In a worker of a run's own server: end the server's processes when their keeper is gone, which may not have done it."""
    keeper, group = int(os.environ.get(KEEPER, "0")), os.getpgrp()
    if not keeper:
        return

    def look() -> None:
        while is_keeper(keeper):
            time.sleep(1.0)
        os.killpg(group, signal.SIGKILL)

    threading.Thread(target=look, daemon=True, name="rlrt-keeper").start()


def is_keeper(pid: int) -> bool:
    """True if a process is a keeper that runs."""
    return b"keeper.py" in command_of(pid)


end_without_keeper()
for name, backend in ((REFERENCE, ByReference), (SENT, BySending)):
    if name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(name, backend)
