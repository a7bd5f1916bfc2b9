"""A run's folder: its files, its state, and what happens to an earlier run in it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from rlrt.errors import FolderLost
from rlrt.records.claims import refuse_replaced
from rlrt.records.files import read_json, resolved, write_json
from rlrt.records.jsonlines import JsonLines
from rlrt.records.lease import LEASE
from rlrt.records.secrets import masked, without_known
from rlrt.records.storage import DENIED, FULL, removed

PRUNE = "prune"
STAYS = ("log.txt", "lease.lock", "lease.json")
"""Files of a run's folder that stay in place when an earlier run is moved away, since they are in use; and so do claims."""
CLAIM = re.compile(r"lease\.[0-9]+")
log = logging.getLogger("rlrt")


BEGUN = "begun"
"""Key of ``summary.json``: whether the run itself has begun in the process that made the state running, or only its job."""


class RunFolder:
    """The paths and small files of one run.

    Raises:
        FolderLost: if the folder cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".writable.{secrets.token_hex(8)}"  # of a name that nobody can have put a link under
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise FolderLost(
                f"hydra.run.dir: {path} cannot be written ({error.strerror}); give a writable folder as hydra.run.dir=FOLDER."
            ) from None
        self.record = JsonLines(path / "metrics.jsonl")
        self.samples = JsonLines(path / "samples.jsonl")
        self.checkpoints = path / "checkpoints"

    def summary(self) -> dict[str, Any]:
        """Read ``summary.json``, which holds the state and the final metrics; {} for a folder without a run."""
        return read_json(self.path / "summary.json")

    def set_state(self, state: str, **more: Any) -> None:
        """Set the state in ``summary.json``: queued, running, finished, failed, interrupted or pruned."""
        if "error" in more:
            more["error"] = masked(str(more["error"]))
        job = os.environ.get("SLURM_JOB_ID")
        extra = {"slurm_job_id": job} if job else {}
        self.note(state=state, changed=time.time(), **extra, **more)

    def note(self, **more: Any) -> None:
        """Update ``summary.json`` without changing the state.

        Raises:
            Replaced: if another process has taken over the folder from this one.
        """
        self.check_mine()
        file, values = self.path / "summary.json", self.summary() | more
        try:
            write_json(file, values)
        except OSError as error:
            if error.errno not in (*FULL, *DENIED) or not file.is_file():
                raise
            write_in_place(file, json.dumps(values, default=str))

    def check_mine(self) -> None:
        """Refuse to write in a folder whose lease this process held until another one took it over.

        Raises:
            Replaced: naming the other process.
        """
        refuse_replaced(self.path / LEASE)

    def check_there(self) -> None:
        """Refuse to go on in a folder that was taken over, or removed, even if a part of it was made anew.

        Raises:
            FolderLost: if the manifest, which every run begins with, is not there.
            Replaced: if another process has taken over the folder from this one.
        """
        self.check_mine()
        if not (self.path / "manifest.json").is_file():
            raise removed(self.path)

    def forget_remains(self) -> None:
        """Remove what this run made anew in its folder after the folder was removed: a checkpoint that was just being written.

        Nothing is touched where a file of the run that is older than its checkpoints is there.
        """
        first = (self.path / name for name in ("manifest.json", "config.yaml", "metrics.jsonl"))
        if not any(file.exists() for file in first):
            for name in ("checkpoints", "tokens"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def ask_to_prune(self) -> None:
        """Write the prune mark: the search has given up on the run, which must end for good at its next step boundary."""
        (self.path / PRUNE).touch()

    def revive(self) -> None:
        """Remove the prune mark: the run is wanted in full again and resumes from its newest checkpoint."""
        if self.prune_asked():
            (self.path / PRUNE).unlink()
            if self.summary().get("state") == "pruned":
                self.set_state("interrupted")

    def prune_asked(self) -> bool:
        """True if the run has a prune mark."""
        return (self.path / PRUNE).exists()

    def manifest(self) -> dict[str, Any]:
        """Read ``manifest.json``."""
        return read_json(self.path / "manifest.json")

    def write_manifest(self, **values: Any) -> None:
        """Update ``manifest.json``; errors as ``note``."""
        self.check_mine()
        write_json(self.path / "manifest.json", self.manifest() | values)

    def key(self) -> str:
        """Return this run's unique key; it is created on first use."""
        key = self.manifest().get("key")
        if not is_key(key):
            key = secrets.token_hex(8)
            self.write_manifest(key=key)
        return str(key)

    def begun(self) -> bool:
        """True if a run has written anything to the folder, damaged files included."""
        return (self.path / "summary.json").exists() or "identity" in self.manifest() or self.holds_results()

    def holds_results(self) -> bool:
        """True if the folder holds a config, records or a checkpoint; a run writes these after the identity."""
        files = (self.path / "config.yaml", self.record.path, self.samples.path)
        written = any(p.exists() and p.stat().st_size > 0 for p in files)  # a starting run first creates empty files
        return written or any(self.checkpoints.glob("step_*"))

    def put_aside(self) -> Path | None:
        """Move an earlier run in this folder to ``NAME.old-1`` (2, 3, ...), so that nothing is lost; None without a run."""
        if not self.begun():
            return None
        number, folder = 1, resolved(self.path)  # a link is resolved, so that the target is on the same disk
        while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
            number += 1
        target.mkdir()
        for item in list(folder.iterdir()):
            if item.name not in STAYS and not CLAIM.fullmatch(item.name):
                item.rename(target / item.name)
        return target


def write_in_place(file: Path, text: str) -> None:
    """Write a text over a file's bytes, where no file can be made beside it; on a full disk it has its blocks.

    Raises:
        OSError: if it does not fit into them.
    """
    data = without_known(text).encode()
    with file.open("r+b", buffering=0) as handle:
        if len(data) > os.fstat(handle.fileno()).st_blocks * 512:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        handle.write(data)
        handle.truncate()


class Beginning:
    """What was there before a command made a folder: a command that is refused removes what it made, and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._folders = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self._files = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set()

    def undo(self) -> None:
        """Remove the first files of a run that never began, and the folders that were made for it, if they are empty."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == resolved(self.path):
                handler.close()
        with contextlib.suppress(OSError):
            made = {name for name in STAYS if (self.path / name).exists()} - self._files
            if {p.name for p in self.path.iterdir()} - self._files > made:
                return  # a run began
            for name in made:
                (self.path / name).unlink()
            for folder in self._folders:
                folder.rmdir()


BEGINNINGS: list[Beginning] = []
"""Before Hydra made the folder of a single run."""


def is_key(value: Any) -> bool:
    """True for a run's or a sweep's key; any other text could change the query in which MLflow is asked for it."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value) is not None


def forget_empty(path: Path) -> None:
    """Remove what Hydra made for a run that never began."""
    for beginning in BEGINNINGS:
        if beginning.path == path.absolute():
            beginning.undo()
