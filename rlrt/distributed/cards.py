"""The GPUs of this machine that a process may use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from rlrt.errors import UserError

DRIVER_CARDS = Path("/proc/driver/nvidia/gpus")
"""A folder of the NVIDIA driver with one entry for each GPU."""


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
