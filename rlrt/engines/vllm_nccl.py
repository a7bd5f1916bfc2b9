"""Weights to a vLLM server by NCCL: vLLM's own sender in the trainer, given this run's names, order and label.

The server's side is ``rlrt.engines.vllm_transfer.BySending``. Where the trainer's environment has no vLLM, weights go by file.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from rlrt.distributed.ports import probed
from rlrt.distributed.rank import EXIT
from rlrt.engines.vllm import ENVIRONMENT, global_state_restored
from rlrt.engines.vllm_client import Server
from rlrt.engines.vllm_common import BUFFER, BUFFERS, RELEASE, installed_version, is_supported
from rlrt.model.lora import base_name, base_weights, named_weights

log = logging.getLogger("rlrt")
GRACE_S = 30.0
"""Seconds that a broadcast gets to end by itself once the server has failed to receive it."""
REACH_S = 10.0
"""Longest wait for a connection that shows this machine's address, seconds."""


def obstacle(model: Any, description: dict[str, Any]) -> str:
    """Return why weights cannot go by NCCL; empty if they can.

    Args:
        model: the trainer's.
        description: the server's (``Server.describe``).
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return "the trainer has no GPU"
    if not description.get("cards"):
        return "the server has no GPU"
    if str(torch.cuda.get_device_properties(device).uuid) in description["cards"]:
        return "trainer and server share a GPU"
    version = installed_version()
    if version is None or not is_supported(version):
        return f"the trainer's environment has no vLLM {RELEASE}"
    return ""


class Weights:
    """A model's weights in the order in which they are sent, as vLLM's ``WeightSource``.

    Attributes:
        model: whose weights; set before each sync.
        sent: bytes that all syncs have sent.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.sent = model, 0

    def metadata(self) -> list[Any]:
        """Return name, precision and shape of each, without gathering any."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, dtype, shape) for name, dtype, shape in told(self.model)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each, in the precision that the model computes in."""
        for name, tensor in named_weights(self.model):
            converted = tensor.to(sent_dtype(self.model, tensor))
            self.sent += converted.nbytes
            yield name, converted


def told(model: Any) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Return names, precisions and shapes of ``named_weights`` in its order; no rank gathers anything."""
    weights = base_weights(model)
    return [(base_name(name), sent_dtype(model, tensor), tuple(tensor.shape)) for name, tensor in weights]


def sent_dtype(model: Any, tensor: Tensor) -> torch.dtype:
    """Return the precision in which a weight is sent."""
    dtype: torch.dtype = getattr(model, "compute_dtype", None) or tensor.dtype
    return dtype


class Labelled:
    """The server as vLLM's sender wants it (``VLLMWeightSyncClient``): it knows no labels.

    Attributes:
        label: of the weights that are being sent.
    """

    def __init__(self, server: Server) -> None:
        self._server, self.label = server, ""
        self._timer: threading.Timer | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let the workers meet the trainer."""
        self._server.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        """Begin an update."""
        self._server.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Let the workers receive, beside the broadcast; called by a thread of its own.

        NCCL waits for ever for a worker that is gone. So if this fails, and the broadcast does not end within ``GRACE_S``, this
        process ends.
        """
        try:
            self._server.update_weights({"update_info": update_info})
        except Exception as error:
            self._timer = threading.Timer(GRACE_S, give_up, [error])
            self._timer.daemon = True
            self._timer.start()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update."""
        self._server.finish_weight_update(weight_version or self.label)

    def settled(self) -> None:
        """The broadcast has ended, by itself or by an error."""
        if self._timer is not None:
            self._timer.cancel()


def give_up(error: Exception) -> None:
    """End this process, whose main thread waits in NCCL."""
    log.error("the vLLM server failed while it received weights by NCCL, which waits for ever then: %s", error)
    os._exit(EXIT)


class Sender:
    """Rank 0's end of the NCCL group with a server's workers; ranks 1 to N of the group are theirs.

    Raises:
        Exception: of NCCL or vLLM, if the two sides do not meet.
    """

    def __init__(self, server: Server, model: Any) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._client, self._weights, self._device = Labelled(server), Weights(model), next(model.parameters()).device
        with global_state_restored(), torch.cuda.device(self._device):
            from vllm.distributed.weight_transfer.nccl_engine import (
                NCCLTrainerInitInfo,
                NCCLTrainerWeightTransferEngine,
            )

            here = own_address(server.url)
            init = NCCLTrainerInitInfo(
                master_address=here,
                master_port=probed(here, 0),
                world_size=1 + server.world_size(),
                packed=True,
                packed_buffer_size_bytes=BUFFER,
                packed_num_buffers=BUFFERS,
                rank=0,
            )
            self._engine = NCCLTrainerWeightTransferEngine.trainer_init(init, client=self._client, source=self._weights)

    def send(self, model: Any, label: str) -> int:
        """Send a model's weights under a label; return their bytes. Other ranks gather sharded weights meanwhile."""
        self._weights.model, self._client.label, before = model, label, self._weights.sent
        torch.cuda.synchronize(self._device)  # it packs on streams of its own, which do not wait for the optimiser's
        try:
            with torch.cuda.device(self._device):
                self._engine.send_weights()
        finally:
            self._client.settled()
        return self._weights.sent - before

    def close(self) -> None:
        """Leave the group."""
        self._engine.shutdown()


def own_address(url: str) -> str:
    """Return this machine's address as a server sees it."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=REACH_S) as connection:
        return str(connection.getsockname()[0])
