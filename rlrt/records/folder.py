"""A run's folder: what is in it, and who may write it."""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records.files import read_json, write_json
from rlrt.records.jsonlines import JsonLines
from rlrt.records.secrets import masked

PRUNE = "prune"
STAYS = ("log.txt", "lease.lock", "lease.json")
"""Files of a run's folder that are in use while an earlier run is put aside."""
log = logging.getLogger("rlrt")


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


def forget_empty(path: Path) -> None:
    """Remove the folder of a run that never began (Hydra makes it, with a log, before anything is checked)."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == path.resolve():
            handler.close()
    if path.is_dir() and {p.name for p in path.iterdir()} <= set(STAYS):
        for name in STAYS:
            (path / name).unlink(missing_ok=True)
        for folder in (path, path.parent, path.parent.parent):  # outputs/runs/NAME; only what is empty goes
            if any(folder.iterdir()) or folder == Path.cwd():
                break
            folder.rmdir()
