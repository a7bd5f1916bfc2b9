"""A run's folder: what is in it, and who may write it."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import secrets
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.secrets import MASK, command_line, masked, names_secret
from rlrt.trackers.record import JsonLines

PRUNE = "prune"
NUMBER_LIKE = re.compile(r"[-+]?(\d[\d_]*)?\.?\d*([eE][-+]?\d+)?")
"""Texts that YAML 1.1 or 1.2 may take for a number."""
LARGEST_CONFIG = 1_000_000
"""Characters of a stored config that are read."""
STAYS = ("log.txt", "lease.lock", "lease.json")
"""Files of a run's folder that are in use while an earlier run is put aside."""
log = logging.getLogger("rlrt")
REPORTED = ("rlrt", "torch", "transformers", "tokenizers", "hydra-core", "omegaconf", "mlflow", "optuna", "submitit")


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Replace a small JSON file in one go.

    Args:
        private: whether its owner alone may read the file, from its first byte on.
    """
    replace_text(path, json.dumps(value, indent=1, default=str) + "\n", private)


def replace_text(path: Path, text: str, private: bool = False) -> None:
    """Replace a small text file in one go; two processes may write one file: the last one wins, whole."""
    work = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    rights = 0o600 if private else stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666
    work.unlink(missing_ok=True)
    with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, rights), "w", encoding="utf-8") as file:
        file.write(text)
    work.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object, or {} where there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def mapping(value: Any) -> dict[str, Any]:
    """A value of somebody's JSON where an object belongs; {} for all else."""
    return value if isinstance(value, dict) else {}


def config_text(plain: Mapping[str, Any]) -> str:
    """A config as YAML that every reader takes back as it is: texts that look like numbers to some of them are quoted."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """With the rule for texts."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar(
            "tag:yaml.org,2002:str", value, style="'" if NUMBER_LIKE.fullmatch(value) else None
        )

    Dumper.add_representer(str, text)
    return yaml.dump(dict(plain), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def stored_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` of a run's folder as plain values: data, whose texts nothing resolves.

    Raises:
        UserError: for a file that is missing, larger than any config, no mapping, or no YAML, or YAML with aliases: rlrt writes
            none, and a few lines of them can stand for gigabytes.
    """
    import yaml

    file = folder / "config.yaml"
    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"expected at most {LARGEST_CONFIG} characters, found {len(text)}")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it holds an alias")
        plain = yaml.safe_load(text)
        if not isinstance(plain, dict):
            raise ValueError(f"expected a mapping, found a {type(plain).__name__}")
    except Exception as error:  # YAML and the file system have many types for one cause
        said = " ".join(str(error).split())[:160]
        raise UserError(f"{file} cannot be read as a run's config: {said or type(error).__name__}.") from None
    return {str(k): v for k, v in plain.items()}


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
        if "error" in more:
            more["error"] = masked(str(more["error"]))
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

    def begun(self) -> bool:
        """Whether a run has left anything here: what is in it may be damaged."""
        return (self.path / "summary.json").exists() or "identity" in self.manifest() or self.holds_more()

    def holds_more(self) -> bool:
        """Whether there is more of a run than its state and its name: what is written once the manifest says whose it is."""
        left = (self.path / "config.yaml", self.record.path, self.samples.path)
        written = any(p.exists() and p.stat().st_size > 0 for p in left)  # a run that begins makes empty ones first
        return written or any(self.checkpoints.glob("step_*"))

    def put_aside(self) -> Path | None:
        """Rename an earlier run in this folder to ``NAME.old-1`` (2, 3, ...), so that nothing is lost."""
        if not self.begun():
            return None
        number, here = 1, self.path.resolve()  # of a link the folder that it leads to: on the same disk
        while (target := here.with_name(f"{here.name}.old-{number}")).exists():
            number += 1
        target.mkdir()
        for item in list(here.iterdir()):
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
        "command": command_line(sys.argv),
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
        MASK if line[:1] in "+-" and re.search(r"[=:]", line) and names_secret(line) else masked(line)
        for line in (diff or "").splitlines()
    ]
    return {"git_commit": commit.strip(), "git_diff": "\n".join(lines)[:1_000_000]}
