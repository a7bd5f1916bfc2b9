"""Checks of what a run needs besides memory: data, model files, a writable folder with free space, free ports."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rlrt.config.checks import lacking
from rlrt.config.schema import Settings
from rlrt.distributed.ports import probed
from rlrt.errors import UserError, amount
from rlrt.execution.data import check_data, check_fit, drop_long_prompts, prepare_data, prompts_of
from rlrt.execution.parts import Parts, closing
from rlrt.model.files import check_folder, other_revisions
from rlrt.preflight.finding import Finding
from rlrt.preflight.model import builder_of, context_of, source_of
from rlrt.records.files import free_bytes, nearest_existing
from rlrt.sweep.disk import checkpoint_bytes, still_needed
from rlrt.sweep.plan import Job

RENDEZVOUS = 29500
"""torch's default port for the rendezvous of a run's processes."""
PATIENCE_S = 2.0
"""Seconds that a server gets to answer."""


class WarningRecorder(logging.Handler):
    """Log handler that records the warnings of a check."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Record one warning."""
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Record warnings instead of printing them, and yield the list of their messages."""
    log, handler = logging.getLogger("rlrt"), WarningRecorder()
    log.addHandler(handler)
    propagates, log.propagate = log.propagate, False
    try:
        yield handler.messages
    finally:
        log.removeHandler(handler)
        log.propagate = propagates


def check_problems(settings: Settings, parts: Parts) -> list[Finding]:
    """Check that the data can be read and a run can use it; it stays prepared in ``parts``."""
    with recorded_warnings() as warnings, closing(parts):
        try:
            prepare_data(parts)
            builder = builder_of(settings)
            if builder is not None:
                drop_long_prompts(parts.task, builder)
            check_data(settings, parts)
            if builder is not None:
                check_fit(prompts_of(parts), builder, context_of(settings), settings.engine.max_new_tokens)
        except UserError as error:
            return [Finding("problem", "data", str(error))]
    results = [Finding("warning", "data", message) for message in warnings]
    counts = f"{len(parts.task.train)} training and {len(parts.task.heldout)} held-out problems"
    if builder is None:
        results.append(
            Finding("skipped", "prompts", "the model's tokenizer is not on this machine, so their length is unknown")
        )
    return [Finding("ok", "data", counts), *results]


def check_packages(settings: Settings) -> list[Finding]:
    """Check that what the options need is installed; jobs run with this Python, also on SLURM."""
    return [Finding("problem", part, sentence) for part, sentence in lacking(settings)]


def check_model(settings: Settings, away: bool = False) -> Finding:
    """Check that the model's files are complete on this machine, without reading the weights.

    Args:
        away: True if the run computes elsewhere (SLURM).
    """
    path = settings.model.path
    try:
        folder = source_of(settings)
        if folder is None:
            if others := other_revisions(path, settings.model.revision):
                return Finding(
                    "warning", "model", f"{path} is not on this machine{others}; run python -m rlrt.fetch first"
                )
            if away:
                sentence = (
                    f"{path} is not in the hub's cache, and nodes often have no network; run python -m rlrt.fetch first"
                )
                return Finding("warning", "model", sentence)
            return Finding("skipped", "model", f"{path} is not on this machine; a run would ask the hub for it")
        check_folder(folder)
    except UserError as error:
        return Finding("problem", "model", str(error))
    return Finding("ok", "model", str(folder))


def check_folder_and_disk(folder: Path, jobs: Sequence[Job], count: int, key: str) -> list[Finding]:
    """Check that the folder of a run or a sweep can be written, and that its disk can hold the checkpoints.

    Args:
        folder: the folder, which need not exist.
        jobs: the jobs' configs and folders; for a search, one job that represents all.
        count: number of jobs.
        key: hydra.run.dir or hydra.sweep.dir.
    """
    existing = nearest_existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        sentence = f"{existing} cannot be written; set {key}=FOLDER"
        return [Finding("problem", "folder", sentence)]
    results = [Finding("ok", "folder", str(folder))]
    sizes = [checkpoint_bytes(job) for job in jobs]
    if not all(sizes):
        sentence = "the weights are not on this machine, so the size of their checkpoints is not known"
        return [*results, Finding("skipped", "disk", sentence)]
    needed, free = still_needed(jobs) * count // len(jobs), free_bytes(existing)
    sentence = f"the checkpoints need about {amount(needed)} of {amount(free)} free"
    if needed > free:
        remedy = f"set train.keep_last=1, a larger train.save_every, or {key}=FOLDER on a larger disk"
        return [*results, Finding("problem", "disk", f"{sentence}; {remedy}")]
    return [*results, Finding("ok", "disk", sentence)]


def check_ports(settings: Settings, processes: int, away: bool) -> list[Finding]:
    """Check that the run's own ports are free, and that other servers listen at theirs.

    Args:
        processes: number of a run's processes.
        away: True if the run is for another machine.
    """
    results = []
    if processes > 1:
        results.append(check_rendezvous(away))
    url = settings.engine.url
    if url:
        host, port = address(str(url))
        if listens(host, port):
            results.append(Finding("ok", "engine", f"something listens at {host}:{port}"))
        elif host in ("localhost", "127.0.0.1", "::1"):
            results.append(Finding("ok", "engine", f"port {port} is free for a server to be started"))
        else:
            sentence = (
                f"nothing listens at {host}:{port} within {PATIENCE_S:g} s; start the server, or set engine.url=URL"
            )
            results.append(Finding("problem", "engine", sentence))
    return results


def check_rendezvous(away: bool) -> Finding:
    """Check that the port for the rendezvous of a run's processes is free."""
    text = os.environ.get("MASTER_PORT", str(RENDEZVOUS))
    if not text.isdigit() or not 0 < int(text) < 65536:
        return Finding(
            "problem", "port", f"expected MASTER_PORT to be a port, got {text!r}; unset it or set it to 29501"
        )
    if away:
        return Finding("skipped", "port", f"{text} is checked on the node of rank 0, which is not this machine")
    if is_free(int(text)):
        return Finding("ok", "port", f"{text} is free for the rendezvous of the processes")
    return Finding(
        "problem", "port", f"{text}, for the rendezvous of the processes, is taken; set MASTER_PORT={int(text) + 1}"
    )


def is_free(port: int) -> bool:
    """True if a server can listen at a port of this machine."""
    try:
        probed("", port)
    except OSError:
        return False
    return True


def address(url: str) -> tuple[str, int]:
    """Return host and port of a URL."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80)


def listens(host: str, port: int) -> bool:
    """True if a server accepts a connection within ``PATIENCE_S``."""
    try:
        with socket.create_connection((host, port), timeout=PATIENCE_S):
            return True
    except OSError:
        return False


def check_tracking(uri: str | None) -> Finding:
    """Check that MLflow's store can be reached; failure is a warning only, since the run's folder is the record."""
    from rlrt.records.mlflow_uri import absolute
    from rlrt.records.secrets import without_password

    if uri is None:
        return Finding("skipped", "tracking", "tracking.uri is null")
    public_uri = without_password(uri)
    if uri.startswith(("http://", "https://")):
        if listens(*address(uri)):
            return Finding("ok", "tracking", f"{public_uri} answers")
        return Finding(
            "warning", "tracking", f"{public_uri} does not answer; python -m rlrt.sync replays later what it misses"
        )
    if not uri.startswith("sqlite:///"):
        return Finding("skipped", "tracking", f"{public_uri} is not checked")
    file = Path(absolute(uri).removeprefix("sqlite:///"))
    existing = next(p for p in (file, *file.parents) if p.exists())
    if os.access(existing, os.W_OK):
        return Finding("ok", "tracking", f"{file} can be written")
    return Finding("warning", "tracking", f"{existing} cannot be written; set tracking.uri=sqlite:///FILE or null")
