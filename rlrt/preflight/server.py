"""Checks of ``engine=vllm_server``: a server of the run's own, and the way of weights to one on another machine."""

from __future__ import annotations

from typing import Any

from rlrt.config.schema import Settings
from rlrt.engines.vllm_server import VllmServerEngine, check_folder
from rlrt.errors import UserError
from rlrt.preflight.finding import Finding


def check_server(settings: Settings, launcher: Any, kind: str) -> list[Finding]:
    """Say what a run's server takes, and whether weights can reach it as files.

    Args:
        launcher: that starts the run's processes; its GPUs have been decided.
        kind: cpu or cuda, on which the trainer computes.
    """
    engine = settings.engine
    if not isinstance(engine, VllmServerEngine):
        return []
    if engine.start:
        cards = engine.cards_beside(kind == "cuda")
        place = f"the last {cards} GPU{'s' * (cards > 1)} of each run's first machine" if cards else "the CPU"
        found = [
            Finding("ok", "engine", f"each run starts a vLLM server on {place}; its memory is not part of the estimate")
        ]
        if launcher.nodes > 1 and cards:
            which = f"{cards} GPU{'s' * (cards > 1)} of every node but the first"
            idle = f"{which} will be idle: SLURM gives all nodes as many processes"
            found.append(Finding("warning", "engine", idle))
        return found
    try:
        check_folder(str(engine.url), engine.transfer_dir)
    except UserError as error:
        return [Finding("problem" if engine.transfer == "file" else "warning", "engine", str(error))]
    return []
