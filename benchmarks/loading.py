"""One process of a run builds its models, and says what memory that took; ``benchmarks.peak --loading`` starts it by torchrun.

It imports rlrt alone, so that PYTHONPATH can name another checkout. Arguments: the words of a run.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.distributed.world import connect
from rlrt.execution.build import build_learner


def resident(kind: str) -> float:
    """MB of this process: ``VmHWM`` (its peak), ``VmRSS``, ``RssAnon`` (its own) or ``RssFile`` (pages of files)."""
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1e3 if found else 0.0


def main(words: list[str]) -> None:
    """Build the models and print a line for each process."""
    torch.set_num_threads(1)
    world = connect(600.0, on_gpu=False)
    before = resident("VmRSS")
    settings = load(composed(words))
    build_learner(settings, world)
    own, files = resident("RssAnon"), resident("RssFile")
    print(f"rank {world.rank}: {resident('VmHWM') - before:.0f} {own:.0f} {files:.0f}", flush=True)
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
