"""How weights get into vLLM: two backends of its own interface for that. vLLM's workers import this file.

``rlrt_reference`` takes the trainer's tensors as they are, in one process; ``rlrt_file`` reads a safetensors file, in any.
vLLM's own backends (NCCL, IPC) need CUDA.
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
    """Neither backend needs to be told anything beforehand."""


@dataclass
class Tensors(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Names and tensors, taken one at a time."""

    weights: Iterable[tuple[str, torch.Tensor]]


@dataclass
class File(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A safetensors file that the workers can read."""

    path: str


class Transfer(WeightTransferEngine):  # type: ignore[misc]
    """What both backends do: vLLM's layerwise reload, and a check that no weight was left out.

    Attributes:
        broken: True from the start of an update to its good end: a model in between computes nonsense.
    """

    init_info_cls = Nothing
    broken = False

    def init_transfer_engine(self, init_info: Nothing) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Begin; until the end the model is in pieces."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.broken = True
        self.wanted = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Any) -> None:
        """Load some weights."""
        self.wanted -= self.model.load_weights(self.read(update_info))

    @abstractmethod
    def read(self, update_info: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors."""

    def finish_weight_update(self) -> None:
        """Put the model together.

        Raises:
            RuntimeError: if some weights never came (vLLM would go on with the old ones).
        """
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self.wanted:
            raise RuntimeError(f"{len(self.wanted)} weights were not sent: {', '.join(sorted(self.wanted)[:3])}")
        renew_tied_head(self.model)
        self.broken = False

    def shutdown(self) -> None:
        """Nothing to release."""


class ByReference(Transfer):
    """Tensors of the same process."""

    update_info_cls = Tensors

    def read(self, update_info: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        """As they come."""
        yield from update_info.weights


class ByFile(Transfer):
    """A file, read tensor by tensor."""

    update_info_cls = File

    def read(self, update_info: File) -> Iterator[tuple[str, torch.Tensor]]:
        """In the file's order."""
        from safetensors import safe_open

        with safe_open(update_info.path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def renew_tied_head(model: Any) -> None:
    """On a CPU vLLM multiplies by a packed copy of the output layer's weight; a reload forgets it where the weight is the
    embedding's."""
    from vllm.platforms import current_platform

    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if current_platform.is_cpu() and head is not None and embedding is not None and head.weight is embedding.weight:
        head.quant_method.process_weights_after_loading(head)


class Extension:
    """What a worker learns by ``worker_extension_cls``; to name it is to import the backends."""

    vllm_config: Any
    weight_transfer_engine: Any

    def rlrt_describe(self) -> dict[str, Any]:
        """What a trainer must know before it uses this engine."""
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
