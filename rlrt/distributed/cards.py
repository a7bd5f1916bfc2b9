"""The GPUs of this machine that a process may use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from rlrt.errors import UserError

DRIVER_CARDS = Path("/proc/driver/nvidia/gpus")
"""A folder of the NVIDIA driver with one entry for each GPU."""
ASIDE = "RLRT_CARDS_ASIDE"
"""Environment variable of a rank: the GPUs that ``set_aside`` hid from it."""


def visible_cards() -> list[str]:
    """Return the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or all that the driver lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [card.strip() for card in chosen.split(",") if card.strip()]
    if shutil.which("nvidia-smi") is not None:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    else:
        count = len(list(DRIVER_CARDS.glob("*")))
    return [str(i) for i in range(count)]


def refuse_shared_cards(cards: int) -> None:
    """Refuse more ranks on this machine than it has GPUs: NCCL does not let two ranks share one.

    Args:
        cards: GPUs that its processes may use; 0: they compute on the CPU.

    Raises:
        UserError: with both numbers.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < cards < ranks:
        raise UserError(
            f"this run has {ranks} processes on this machine, which may use {cards} GPU{'s' * (cards > 1)}; start as many "
            "as there are GPUs (torchrun's --nproc-per-node, or hydra.launcher.tasks_per_node), or set device=cpu."
        )


def set_aside(count: int, train: bool) -> list[str]:
    """Hide the last GPUs of a run's first machine from its ranks, before CUDA starts: they are for a process beside them.

    Args:
        count: how many; 0: none.
        train: whether the ranks compute on GPUs, each on one.

    Returns:
        the GPUs; [] on another machine than that of rank 0. A second call in a process returns those of the first.

    Raises:
        UserError: if there are fewer GPUs than ranks and ``count`` together.
    """
    if ASIDE in os.environ:
        return [card for card in os.environ[ASIDE].split(",") if card]
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    if count == 0 or rank != local_rank:
        return []
    cards, ranks = visible_cards(), ranks_here() if train else 0
    if len(cards) < count + ranks:
        each = f" and its {ranks} process{'es' * (ranks > 1)} there one each" if train else ""
        raise UserError(
            f"engine.gpus: the run's server takes {count} GPU{'s' * (count > 1)} of its first machine{each}, which may use "
            f"{len(cards)}; start fewer processes (torchrun's --nproc-per-node, or hydra.launcher.tasks_per_node), or lower "
            "engine.gpus."
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(cards[:-count])
    os.environ[ASIDE] = ",".join(cards[-count:])
    return cards[-count:]


def ranks_here() -> int:
    """Return the number of the run's ranks on this machine; 1 if nobody says."""
    told = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or "1"
    return int(told) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 1


def see_own_card() -> None:
    """Let a rank of several see its own GPU alone, before CUDA starts: a library that takes the first GPU then takes this one.

    Raises:
        RuntimeError: if CUDA has been started before.
    """
    import torch

    rank, cards = int(os.environ.get("LOCAL_RANK", "0")), visible_cards()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or len(cards) < 2:
        return
    if torch.cuda.is_initialized():
        raise RuntimeError("CUDA was started before this rank chose its GPU")
    os.environ["CUDA_VISIBLE_DEVICES"] = cards[rank % len(cards)]
