"""The device of a run: which one it is, whether torch can compute on it, and the precision of computation there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from rlrt.errors import UserError, amount, first_line
from rlrt.model import packed
from rlrt.model.paths import decodes_quickly, paths_of

LARGEST_ON_CPU = 300_000_000
"""Weights of the largest model that ``device=auto`` trains on a CPU; a larger one would take days and is refused."""
DRIVER = Path("/proc/driver/nvidia/version")
"""A file that the NVIDIA driver's kernel module makes."""


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device behind the key ``device``: ``auto`` is a GPU if there is one: the first, or one for each rank of this
    machine."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu" if name == "auto" else name)


def has_nvidia_driver() -> bool:
    """True if this machine has an NVIDIA driver."""
    return DRIVER.exists() or shutil.which("nvidia-smi") is not None


def cuda_problem() -> str:
    """The reason why torch cannot compute on the NVIDIA card of this machine; empty if it can, or if there is no card."""
    if torch.cuda.is_available():
        return unusable_card()
    if not has_nvidia_driver():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "torch.cuda.is_available() is false"


def unusable_card() -> str:
    """The reason why the first card cannot run this build of torch; empty if it can."""
    major, minor = torch.cuda.get_device_capability(0)
    built_for = torch.cuda.get_arch_list()
    same_major = [a for a in built_for if a.startswith("sm_") and int(a.split("_")[1].rstrip("af")) // 10 == major]
    later = [a for a in built_for if a.startswith("compute_")]
    if same_major or later or not built_for:
        return ""
    name = torch.cuda.get_device_name(0)
    return f"{name} has compute capability {major}.{minor}, and torch {torch.__version__} was built for {', '.join(built_for)}"


def check_cuda(device: torch.device) -> None:
    """Refuse a card that this build of torch cannot compute on.

    Raises:
        UserError: naming card and build.
    """
    if device.type == "cuda" and (reason := unusable_card()):
        raise UserError(f"device: {reason}; install a torch for this card (docs/cluster.md), or set device=cpu.")


def refuse_large_on_cpu(path: str, weights: int, device: str) -> None:
    """Refuse to train a large model on the CPU because nobody asked for a device.

    Args:
        path: ``model.path``.
        weights: of the model.
        device: the key; anything but ``auto`` was meant.

    Raises:
        UserError: with the reason why no GPU is used.
    """
    if device != "auto" or resolve_device(device).type != "cpu" or weights <= LARGEST_ON_CPU:
        return
    reason = cuda_problem() or "this machine has no CUDA GPU"
    raise UserError(
        f"device: {path} has {weights / 1e6:,.0f} million weights and would be trained on the CPU ({reason}); start it where a "
        "GPU is, or set device=cpu if that is meant."
    )


def refuse_too_large(path: str, weights: int, each: float, device: torch.device) -> None:
    """Refuse a model of which the part that never leaves the GPU is larger than the GPU.

    Args:
        path: ``model.path``.
        weights: of the model.
        each: bytes that stay on this GPU for each of them.
        device: where it will compute.

    Raises:
        UserError: with both sizes.
    """
    if device.type != "cuda":
        return
    needed, whole = weights * each, torch.cuda.get_device_properties(device).total_memory
    if needed > whole:
        raise UserError(
            f"device: {path} has {weights / 1e6:,.0f} million weights, which with their gradients, moments and copies take "
            f"{amount(needed)}, and {torch.cuda.get_device_name(device)} has {amount(whole)}; shard them over more "
            "GPUs (distributed.strategy=fsdp), set model.lora=16, or take a smaller model."
        )


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of computation behind the key ``dtype``; weights and optimiser are float32 in any case."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.float32 if name == "float32" else torch.bfloat16


def use_tensor_cores(device: torch.device) -> None:
    """Let float32 products on CUDA use TF32: 10 bits of mantissa, up to 8 times as fast."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def make_deterministic() -> None:
    """Let torch, cuBLAS and vLLM compute the same bits each time; call it before CUDA starts.

    torch refuses operations that have no such form. A rollout may still depend on its batch under ``engine=hf``, since
    cuBLAS chooses its kernel by shape.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("VLLM_BATCH_INVARIANT", "1")
    torch.use_deterministic_algorithms(True)


def description(model: Any, dtype: torch.dtype, processes: int) -> str:
    """One line about where and how a run computes: device, card, precision, attention kernel, processes."""
    device = next(model.parameters()).device
    card = (
        f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else f" ({torch.get_num_threads()} threads)"
    )
    precision = "bfloat16 computation, float32 weights" if dtype == torch.bfloat16 else "float32"
    if dtype == torch.float32 and device.type == "cuda":
        precision += f" (TF32 {'on' if torch.get_float32_matmul_precision() != 'highest' else 'off'})"
    return (
        f"device {device}{card}, {precision}, attention by {kernel_of(model)}, {decoding_of(model)}, {processes} "
        f"process{'es' * (processes > 1)}"
    )


def kernel_of(model: Any) -> str:
    """Return what computes attention in the trainer's passes, with the reason where rows are not packed."""
    if packed.enabled(model):
        return f"torch's {'SDPA' if packed.flash_dtype(model) is None else 'varlen flash kernel'} on packed rows"
    reason = paths_of(model).reasons.get("attention")
    return f"{model.config._attn_implementation} on padded rows" + (f" ({reason})" if reason else "")


def decoding_of(model: Any) -> str:
    """Return how ``engine=hf`` decodes, with the reason where that is the plain way and attention has not given it."""
    reasons = paths_of(model).reasons
    if decodes_quickly(model):
        return "quick decoding"
    given = reasons.get("decoding") if reasons.get("decoding") != reasons.get("attention") else None
    return "plain decoding" + (f" ({given})" if given else "")
