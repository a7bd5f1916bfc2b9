"""What a run needs beside memory: its data, its model's files, a folder with room, ports that are free."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlrt.config.schema import Settings
from rlrt.distributed.ports import probed
from rlrt.errors import UserError
from rlrt.execution.build import closing
from rlrt.execution.data import check_data, check_fit, drop_long_prompts, prepare_data
from rlrt.model.files import check_folder
from rlrt.model.load import check_attention
from rlrt.preflight.finding import Finding
from rlrt.preflight.model import builder_of, context_of, source_of
from rlrt.records.files import free_bytes, nearest_existing
from rlrt.reporting.terminal import gigabytes
from rlrt.sweep.disk import checkpoint_bytes, still_needed
from rlrt.sweep.plan import Job

RENDEZVOUS = 29500
"""torch's own port for the processes of a run to meet at."""
PATIENCE_S = 2.0
"""Seconds that a server gets to answer."""


class Heard(logging.Handler):
    """Keeps the warnings of a check, to be shown as its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note one."""
        self.words.append(record.getMessage())


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What is warned of meanwhile."""
    log, handler = logging.getLogger("rlrt"), Heard()
    log.addHandler(handler)
    propagates, log.propagate = log.propagate, False
    try:
        yield handler.words
    finally:
        log.removeHandler(handler)
        log.propagate = propagates


def check_problems(settings: Settings) -> list[Finding]:
    """Whether the data can be had and a run can use it; it stays prepared in ``settings.data``."""
    with heard() as warned, closing(settings.data, *settings.eval.suites.values()):
        try:
            prepare_data(settings)
            builder = builder_of(settings)
            if builder is not None:
                drop_long_prompts(settings.data, builder)
            check_data(settings)
            if builder is not None:
                tested = [p for suite in settings.eval.suites.values() for p in suite.heldout]
                prompts = [*settings.data.train, *settings.data.heldout, *tested]
                check_fit(prompts, builder, context_of(settings), settings.engine.max_new_tokens)
        except UserError as error:
            return [Finding("problem", "data", str(error))]
    found = [Finding("warning", "data", words) for words in warned]
    counts = f"{len(settings.data.train)} training and {len(settings.data.heldout)} held-out problems"
    if builder is None:
        found.append(Finding("skipped", "prompts", "the model's tokenizer is not here, so their length is not known"))
    return [Finding("ok", "data", counts), *found]


def check_model(settings: Settings) -> Finding:
    """Whether the model's files are here and whole, without reading the weights."""
    path = settings.model.path
    try:
        check_attention(settings.model.attn_implementation)
        folder = source_of(settings)
        if folder is None:
            return Finding("skipped", "model", f"{path} is not on this machine; a run would ask the hub for it")
        check_folder(folder)
    except UserError as error:
        return Finding("problem", "model", str(error))
    return Finding("ok", "model", str(folder))


def check_place(folder: Path, jobs: Sequence[Job], count: int, key: str) -> list[Finding]:
    """Whether the folder of a run or a sweep can be written, and its disk holds the checkpoints.

    Args:
        folder: it need not be there.
        jobs: their configs and folders; of a search, one that stands for all.
        count: how many jobs there will be.
        key: hydra.run.dir or hydra.sweep.dir.
    """
    there = nearest_existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        words = f"{there} cannot be written; set {key}=FOLDER"
        return [Finding("problem", "folder", words)]
    found = [Finding("ok", "folder", str(folder))]
    sizes = [checkpoint_bytes(job) for job in jobs]
    if not all(sizes):
        words = "the weights are not on this machine, so the size of their checkpoints is not known"
        return [*found, Finding("skipped", "disk", words)]
    needed, free = still_needed(jobs) * count // len(jobs), free_bytes(there)
    words = f"the checkpoints need about {gigabytes(needed)} of {gigabytes(free)} free"
    if needed > free:
        lower = f"set train.keep_last=1, a larger train.save_every, or {key}=FOLDER on a larger disk"
        return [*found, Finding("problem", "disk", f"{words}; {lower}")]
    return [*found, Finding("ok", "disk", words)]


def check_ports(settings: Settings, processes: int, away: bool) -> list[Finding]:
    """Whether the ports are free that will be listened at, and what must listen does.

    Args:
        processes: of a run.
        away: whether the run is for another machine.
    """
    found = []
    if processes > 1:
        found.append(check_rendezvous(away))
    url = getattr(settings.engine, "url", None)
    if url:
        host, port = address(str(url))
        if listens(host, port):
            found.append(Finding("ok", "engine", f"something listens at {host}:{port}"))
        elif host in ("localhost", "127.0.0.1", "::1"):
            found.append(Finding("ok", "engine", f"port {port} is free for a server to be started"))
        else:
            words = f"nothing listens at {host}:{port} within {PATIENCE_S:g} s; start the server, or set engine.url=URL"
            found.append(Finding("problem", "engine", words))
    return found


def check_rendezvous(away: bool) -> Finding:
    """Whether the port is free at which a run's processes meet."""
    text = os.environ.get("MASTER_PORT", str(RENDEZVOUS))
    if not text.isdigit() or not 0 < int(text) < 65536:
        return Finding(
            "problem", "port", f"expected MASTER_PORT to be a port, got {text!r}; unset it or set it to 29501"
        )
    if away:
        return Finding("skipped", "port", f"{text} is tried on the node where the processes meet, which is not here")
    if is_free(int(text)):
        return Finding("ok", "port", f"{text} is free for the processes to meet at")
    return Finding(
        "problem", "port", f"{text}, where the processes would meet, is taken; set MASTER_PORT={int(text) + 1}"
    )


def is_free(port: int) -> bool:
    """Whether a server can listen at a port of this machine."""
    try:
        probed("", port)
    except OSError:
        return False
    return True


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80)


def listens(host: str, port: int) -> bool:
    """Whether something takes a connection in time."""
    try:
        with socket.create_connection((host, port), timeout=PATIENCE_S):
            return True
    except OSError:
        return False


def check_tracking(uri: str | None) -> Finding:
    """Whether MLflow's store can be reached; never more than a warning, since the run's folder is the record."""
    from rlrt.records.mlflow import absolute
    from rlrt.records.secrets import without_password

    if uri is None:
        return Finding("skipped", "tracking", "tracking.uri is null")
    shown = without_password(uri)
    if uri.startswith(("http://", "https://")):
        if listens(*address(uri)):
            return Finding("ok", "tracking", f"{shown} answers")
        return Finding("warning", "tracking", f"{shown} does not answer; what it misses, python -m rlrt.sync replays")
    if not uri.startswith("sqlite:///"):
        return Finding("skipped", "tracking", f"{shown} is not tried")
    file = Path(absolute(uri).removeprefix("sqlite:///"))
    there = next(p for p in (file, *file.parents) if p.exists())
    if os.access(there, os.W_OK):
        return Finding("ok", "tracking", f"{file} can be written")
    return Finding("warning", "tracking", f"{there} cannot be written; set tracking.uri=sqlite:///FILE or null")


def earlier_step_s(settings: Settings, outputs: Path = Path("outputs")) -> float | None:
    """Seconds of the slowest step of earlier runs of this method on this model, evaluations and first steps left out."""
    from rlrt.records.files import read_json
    from rlrt.records.jsonlines import JsonLines

    slowest: list[float] = []
    wanted: dict[str, Any] = {name: settings.names.get(name) for name in ("method", "model")}
    for manifest in [*outputs.glob("runs/*/manifest.json"), *outputs.glob("sweeps/*/*/manifest.json")]:
        choices = read_json(manifest).get("choices", {})
        if any(choices.get(name) != value for name, value in wanted.items()):
            continue
        records = JsonLines(manifest.parent / "metrics.jsonl").read()
        slowest += [float(r["time/step_s"]) for r in records if "time/step_s" in r and "eval/greedy" not in r]
    return max(slowest, default=None)
