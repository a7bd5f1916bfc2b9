"""A run's folder: what is in it, and who may write it."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.trackers.record import JsonLines

PRUNE = "prune"
STAYS = ("log.txt", "lease.lock", "lease.json")
"""Files of a run's folder that are in use while an earlier run is put aside."""
log = logging.getLogger("rlrt")
SECRET = re.compile(r"(?i)(token|password|passwd|secret|api_?key|credential)")
REPORTED = ("rlrt", "torch", "transformers", "tokenizers", "hydra-core", "omegaconf", "mlflow", "optuna", "submitit")


def redacted(plain: Any, name: str = "") -> Any:
    """A config without secrets: values of secret-sounding keys, and user and password in URIs."""
    if isinstance(plain, dict):
        return {k: redacted(v, str(k)) for k, v in plain.items()}
    if isinstance(plain, list):
        return [redacted(v, name) for v in plain]
    if isinstance(plain, str):
        if is_secret(name):
            return "***"
        words = re.sub(r"([\w.+~/-]+)=(\S+)", lambda m: f"{m[1]}=***" if is_secret(m[1]) else m[0], plain)
        return re.sub(r"(\w+://)[^/\s]+@", r"\1***@", words)
    return plain


def is_secret(name: str) -> bool:
    """Whether a key sounds like one that holds a secret."""
    return bool(SECRET.search(name)) and not name.endswith("_tokens")


def write_json(path: Path, value: Any) -> None:
    """Replace a small JSON file in one go."""
    work = path.with_name(
        f"{path.name}.{os.getpid()}.tmp"
    )  # two processes may write one file: the last one wins, whole
    work.write_text(json.dumps(value, indent=1, default=str) + "\n")
    if path.exists():
        work.chmod(path.stat().st_mode & 0o777)
    work.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object, or {} where there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def or_logged(file: Path) -> Iterator[None]:
    """Go on where a small file cannot be written: the error that is on its way says more than this one would."""
    try:
        yield
    except OSError as error:
        log.error("%s cannot be written (%s)", file, error.strerror)


class RunFolder:
    """Paths and small files of one run.

    Raises:
        UserError: if the folder cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".writable.{os.getpid()}"
            probe.write_text("")
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"hydra.run.dir: {path} cannot be written ({error.strerror}); give a folder that can, as hydra.run.dir=FOLDER."
            ) from None
        self.record = JsonLines(path / "metrics.jsonl")
        self.samples = JsonLines(path / "samples.jsonl")
        self.checkpoints = path / "checkpoints"

    def summary(self) -> dict[str, Any]:
        """``summary.json``: state and final numbers; {} for a folder without a run."""
        return read_json(self.path / "summary.json")

    def set_state(self, state: str, **more: Any) -> None:
        """Update ``summary.json``; state is queued, running, finished, failed, interrupted or pruned."""
        job = os.environ.get("SLURM_JOB_ID")
        extra = {"slurm_job_id": job} if job else {}
        self.note(state=state, changed=time.time(), **extra, **more)

    def note(self, **more: Any) -> None:
        """Update ``summary.json`` and leave the state as it is."""
        write_json(self.path / "summary.json", self.summary() | more)

    def ask_to_prune(self) -> None:
        """Leave a mark that the run should end, for good, at its next step boundary: a search no longer wants it."""
        (self.path / PRUNE).touch()

    def revive(self) -> None:
        """Take that mark away: the run is wanted whole after all, and goes on from what it saved."""
        if self.prune_asked():
            (self.path / PRUNE).unlink()
            if self.summary().get("state") == "pruned":
                self.set_state("interrupted")

    def prune_asked(self) -> bool:
        """Whether such a mark is there."""
        return (self.path / PRUNE).exists()

    def manifest(self) -> dict[str, Any]:
        """``manifest.json``."""
        return read_json(self.path / "manifest.json")

    def write_manifest(self, **values: Any) -> None:
        """Update ``manifest.json``."""
        write_json(self.path / "manifest.json", self.manifest() | values)

    def key(self) -> str:
        """A name of this run alone, made when it first begins."""
        if "key" not in self.manifest():
            self.write_manifest(key=secrets.token_hex(8))
        return str(self.manifest()["key"])

    def put_aside(self) -> Path | None:
        """Rename an earlier run in this folder to ``NAME.old-1`` (2, 3, ...), so that nothing is lost."""
        if not self.summary():
            return None
        number = 1
        while (target := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        target.mkdir()
        for item in list(self.path.iterdir()):
            if item.name not in STAYS:
                item.rename(target / item.name)
        return target


def environment() -> dict[str, Any]:
    """Versions, hardware and code state, for the manifest."""
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
        "command": redacted(" ".join(sys.argv)),
    }


def cpu_name() -> str:
    """The processor's model as Linux gives it, or platform's word for it."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def git_state(where: Path) -> dict[str, Any]:
    """Commit and uncommitted changes of the code, where it lies in a git checkout; the diff is cut at 1 MB."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        diff = git("diff", "HEAD", "--", ".") if commit else None
    except OSError:
        return {}
    if commit is None:
        return {}
    lines = [
        "***" if SECRET.search(line) and re.search(r"[=:]", line) and line[:1] in "+-" else line
        for line in (diff or "").splitlines()
    ]
    return {"git_commit": commit.strip(), "git_diff": "\n".join(lines)[:1_000_000]}
