"""The environment part of a run's manifest: versions, hardware, and the state of the code."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from rlrt.records.secrets import MASK, command_line, masked, names_secret

REPORTED = ("rlrt", "torch", "transformers", "tokenizers", "hydra-core", "omegaconf", "mlflow", "optuna", "submitit")


def environment() -> dict[str, Any]:
    """Return versions, hardware, host and command for the manifest."""
    import torch

    installed = {}
    for name in REPORTED:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "versions": installed,
        "python": platform.python_version(),
        "hardware": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        },
        "host": platform.node(),
        "command": command_line(sys.argv),
    }


def cpu_name() -> str:
    """Return the processor's model from /proc/cpuinfo, or from ``platform`` without that file."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def git_state(where: Path) -> dict[str, Any]:
    """Return commit and uncommitted changes if the code is in a git checkout, else {}; the diff is cut at 1 MB."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        diff = git("diff", "HEAD", "--", ".") if commit else None
    except OSError:
        return {}
    if commit is None:
        return {}
    lines = [
        MASK if line[:1] in "+-" and re.search(r"[=:]", line) and names_secret(line) else masked(line)
        for line in (diff or "").splitlines()
    ]
    return {"git_commit": commit.strip(), "git_diff": "\n".join(lines)[:1_000_000]}
