"""Transfer of weights into vLLM: two backends for vLLM's own transfer interface. vLLM's workers import this file.

``rlrt_reference`` takes the trainer's tensors by reference, within one process; ``rlrt_file`` reads a safetensors file, from
any process. vLLM's own backends (NCCL, IPC) need CUDA.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from rlrt.engines.vllm_common import FILE, REFERENCE, shape_of


@dataclass
class Nothing(WeightTransferInitInfo):  # type: ignore[misc]
    """Empty initialisation: neither backend needs any."""


@dataclass
class Tensors(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Names and tensors, read one at a time."""

    weights: Iterable[tuple[str, torch.Tensor]]


@dataclass
class File(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A safetensors file that the workers can read."""

    path: str


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
        self.missing -= self.model.load_weights(self.read(update_info))

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


class ByFile(Transfer):
    """Transfer of a file, read tensor by tensor."""

    update_info_cls = File

    def read(self, update_info: File) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors in the file's order."""
        from safetensors import safe_open

        with safe_open(update_info.path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


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
        }


for name, backend in ((REFERENCE, ByReference), (FILE, ByFile)):
    if name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(name, backend)
