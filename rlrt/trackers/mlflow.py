"""MLflow, off the training thread. It may be slow, unreachable or broken: the run goes on, and its folder has it all."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rlrt.errors import UserError

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
BATCH = 1000
"""Metrics that one call of MLflow's log_batch takes at most."""


def check_uri(uri: str) -> None:
    """Refuse a tracking URI of a kind that MLflow does not take: a misconfigured tracker stops the run at once.

    MLflow 3.17 itself refuses its old file store.

    Raises:
        UserError: naming the URI (without its password) and the kinds that work.
    """
    scheme = uri.split("://")[0].split("+")[0] if "://" in uri else ""
    if uri.rstrip("/") == "sqlite:":
        raise UserError(f"tracking.uri: expected a file after sqlite:///, got {uri!r}.")
    if scheme not in SCHEMES:
        raise UserError(
            f"tracking.uri: expected sqlite:///FILE, http(s)://HOST or null, got {without_password(uri)!r}, a kind that "
            "MLflow does not take."
        )


def without_password(uri: str) -> str:
    """The URI with user and password masked."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rsplit("@", 1)[1]))


def absolute(uri: str) -> str:
    """A relative SQLite path made absolute, so that the line shown to open MLflow works from anywhere."""
    match = re.fullmatch(r"sqlite:///(?!/)(.+)", uri)
    return f"sqlite:///{Path(match[1]).resolve()}" if match else uri


class MlflowTracker:
    """Sends a run to MLflow from a thread of its own.

    Args:
        uri, experiment, artifacts: from ``tracking.*``.
        run_id: continue this run, or None for a new one.
        name, tags, params: of the run; logged at its start.
        warn: told once, in one sentence, when MLflow fails.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: str,
        run_id: str | None,
        name: str,
        tags: dict[str, str],
        params: dict[str, str],
        warn: Any,
    ) -> None:
        self.uri, self.run_id, self.failed = absolute(uri), run_id, False
        self._experiment, self._artifacts = experiment, artifacts
        self._name, self._tags, self._params, self._warn = name, tags, params, warn
        self._client: Any = None
        self._logged = -1
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def wait_for_run(self, seconds: float) -> str | None:
        """The run's id once MLflow has given one, or None if that takes longer."""
        self._ready.wait(seconds)
        return self.run_id

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Queue the numbers of a step; steps that MLflow already has are dropped there."""
        self._queue.put(("metrics", (step, time.time(), values)))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file of the run's folder."""
        self._queue.put(("artifact", (path, folder)))

    def table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """Queue rows of a table artifact."""
        self._queue.put(("table", (name, columns)))

    def tag(self, name: str, value: str) -> None:
        """Queue a tag."""
        self._queue.put(("tag", (name, value)))

    def close(self, status: str, seconds: float = 60.0) -> bool:
        """End the run with MLflow's ``status`` after everything queued is sent; False where MLflow missed something."""
        self._queue.put(("end", status))
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(TimeoutError(f"no answer within {seconds:g} s"))
        return not self.failed

    def _work(self) -> None:
        try:
            self._start()
            self._ready.set()
            pending: list[Any] = []
            while True:
                kind, value = self._queue.get()
                if kind == "metrics":
                    pending.append(value)
                if pending and (kind != "metrics" or self._queue.empty()):
                    self._send_metrics(pending)
                    pending = []
                if kind == "end":
                    self._client.set_terminated(self.run_id, status=value)
                    return
                self._send(kind, value)
        except Exception as error:  # MLflow raises its own, requests' and SQLAlchemy's types: none may stop a run
            self._fail(error)
        finally:
            self._ready.set()

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            self.failed = True
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            self._warn(
                f"MLflow at {without_password(self.uri)} failed ({text}); the run goes on and its folder records everything."
            )

    def _start(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        with first_use_lock(self.uri):
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param, RunTag

            self._entities = (Metric, Param, RunTag)
            client = MlflowClient(tracking_uri=self.uri)
            found = client.get_experiment_by_name(self._experiment)
            if found is None:
                local = self.uri.split("://")[0] not in ("http", "https")
                location = Path(self._artifacts).resolve().as_uri() if local else None
                experiment_id = client.create_experiment(self._experiment, artifact_location=location)
            else:
                experiment_id = found.experiment_id
        self._client = client
        if self.run_id is None:
            run = client.create_run(experiment_id, run_name=self._name, tags=self._tags)
            self.run_id = run.info.run_id
            params = [Param(k, v[:6000]) for k, v in self._params.items()]
            for start in range(0, len(params), 100):
                client.log_batch(self.run_id, params=params[start : start + 100])
        else:
            client.update_run(self.run_id, status="RUNNING")
            history = client.get_metric_history(self.run_id, "reward/mean")
            self._logged = max((m.step for m in history), default=-1)
            if client.get_run(self.run_id).data.metrics and self._logged < 0:
                self._logged = 0

    def _send_metrics(self, pending: list[tuple[int, float, dict[str, float]]]) -> None:
        metric = self._entities[0]
        batch = [
            metric(name, value, int(when * 1000), step)
            for step, when, values in pending
            if step > self._logged
            for name, value in values.items()
        ]
        for start in range(0, len(batch), BATCH):
            self._client.log_batch(self.run_id, metrics=batch[start : start + BATCH])
        self._logged = max(self._logged, *(step for step, _, _ in pending))

    def _send(self, kind: str, value: Any) -> None:
        if kind == "artifact":
            path, folder = value
            self._client.log_artifact(self.run_id, str(path), folder)
        elif kind == "table":
            name, columns = value
            self._client.log_table(self.run_id, columns, name)
        elif kind == "tag":
            self._client.set_tag(self.run_id, *value)


@contextlib.contextmanager
def first_use_lock(uri: str) -> Iterator[None]:
    """One process at a time while a SQLite file may have to be created: MLflow's own start races."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    from filelock import FileLock

    file = Path(uri.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        yield
