"""MLflow tracking in a thread of its own. If MLflow is slow or fails, the run goes on, and its folder records everything."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records import mlflow_views
from rlrt.records.files import resolved
from rlrt.records.mlflow_uri import absolute, patient, quoted, sqlite_file
from rlrt.records.mlflow_words import accepted, is_taken, reason
from rlrt.records.secrets import masked, without_known, without_password
from rlrt.records.tracker import Queued, Step

KEY = "rlrt.key"
"""Tag that identifies a run whose MLflow id could not be stored before a kill."""
BATCH = 1000
"""Most metrics that MLflow accepts in one call of log_batch."""


@dataclass(frozen=True)
class Input:
    """A data set or model that a run uses.

    Attributes:
        name: name of the data set or model.
        digest: hash of its content, or its revision on the hub.
        source: path or hub id.
        context: training, evaluation or model.
    """

    name: str
    digest: str
    source: str
    context: str


class MlflowTracker(Queued):
    """Sends a run to MLflow from a thread of its own.

    Args:
        uri, experiment, artifacts: from ``tracking.*``.
        run_id: MLflow run to continue; None: the run with this ``key`` (a kill may have lost its id), or a new one.
        key: unique key of this run, valid before it has an MLflow id.
        name, tags, params: logged at the run's start.
        inputs: data sets and models that the run uses; logged at its start.
        foreign: True if a folder named the server: it does not decide where on this machine files are written.
        warn: called once, with one sentence, if MLflow fails.
        lease: as in ``Queued``.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        artifacts: str,
        run_id: str | None,
        key: str,
        name: str,
        tags: dict[str, str],
        params: dict[str, str],
        warn: Any,
        inputs: Sequence[Input] = (),
        foreign: bool = False,
        lease: Path | None = None,
    ) -> None:
        super().__init__("mlflow", warn, lease)
        self.uri, self.run_id = absolute(uri), run_id
        self._experiment, self._artifacts = experiment, artifacts
        self._name = without_known(name)
        self._tags = {k: masked(v) for k, v in tags.items()} | {KEY: key}
        self._params = {k: without_known(v) for k, v in params.items()}
        self._inputs, self._foreign = inputs, foreign
        self._client: Any = None
        self._logged, self._renamed = -1, False
        self._thread.start()

    def _failure(self, error: BaseException) -> str:
        return f"MLflow at {without_password(self.uri)} failed ({reason(error, self.uri)})"

    def _end(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status=status)

    def view(self, name: str, state: dict[str, Any]) -> None:
        """Queue the prepared view of a sweep, whose own run this is: on the page it has its jobs' runs alone.

        Args:
            name: under which MLflow's page lists it.
            state: of MLflow's page of runs, without a filter.
        """
        self._queue.put(("view", (name, state)))

    def _start(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        with first_use_lock(self.uri):
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param

            quieten()
            self._entities = (Metric, Param)
            client = MlflowClient(tracking_uri=patient(self.uri))
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is None:
                local = self.uri.split("://")[0] not in ("http", "https")
                location = resolved(Path(self._artifacts)).as_uri() if local else None
                experiment_id = client.create_experiment(self._experiment, artifact_location=location)
            else:
                experiment_id = experiment.experiment_id
                if experiment.lifecycle_stage == "deleted":
                    client.restore_experiment(experiment_id)
                    self._warn(
                        f"MLflow's experiment {self._experiment} had been deleted; it was restored with its runs."
                    )
        self._client = client
        self._refuse_left()  # MLflow's import takes seconds
        self.run_id = self._stored_run(client) or self._run_with_key(client, experiment_id)
        if self.run_id is None:
            self.run_id = client.create_run(experiment_id, run_name=self._name, tags=self._tags).info.run_id
        run = client.get_run(self.run_id)
        self._experiment_id = run.info.experiment_id
        if (
            self._foreign
            and self.uri.startswith("http")
            and not re.match(r"(?!file:)[a-z][\w+.-]*:", run.info.artifact_uri)
        ):
            raise UserError(
                "it wants files in a folder of this machine; if you know it, give it as --uri, or add --trust"
            )
        self._refuse_left()
        if run.info.lifecycle_stage == "deleted":
            client.restore_run(self.run_id)
            self._warn(f"the run {self._name} had been deleted in MLflow; it was restored, since it goes on.")
        if run.info.status != "RUNNING":
            client.update_run(self.run_id, status="RUNNING")
        for name, value in self._tags.items():
            if run.data.tags.get(name) != value:
                client.set_tag(self.run_id, name, value)
        named = {accepted(k): v[:6000] for k, v in self._params.items()}
        params = [Param(k, v) for k, v in named.items() if k not in run.data.params]
        for start in range(0, len(params), 100):
            client.log_batch(self.run_id, params=params[start : start + 100])
        if self._inputs and not (run.inputs and run.inputs.dataset_inputs):
            self._log_inputs()
        if run.data.metrics:
            history = client.get_metric_history(self.run_id, "reward/mean")
            self._logged = max((m.step for m in history), default=0)

    def _log_inputs(self) -> None:
        """Log the run's inputs as MLflow data sets; a model gets the context ``model``."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        datasets = [
            DatasetInput(
                Dataset(masked(i.name)[:500], i.digest[:36], "rlrt", json.dumps({"uri": masked(i.source)})),
                [InputTag("mlflow.data.context", i.context)],
            )
            for i in self._inputs
        ]
        try:
            self._client.log_inputs(self.run_id, datasets=datasets)
        except Exception as error:  # another job made the same data set at this moment: now the store has it
            if not is_taken(error):
                raise
            self._client.log_inputs(self.run_id, datasets=datasets)

    def _stored_run(self, client: Any) -> str | None:
        """Return the id of the run to continue, or None if this store does not have it (the URI may have changed)."""
        from mlflow.exceptions import MlflowException

        if self.run_id is None:
            return None
        try:
            run = client.get_run(self.run_id)
            return (
                str(self.run_id) if run.data.tags.get(KEY) == self._tags[KEY] else None
            )  # else it is another folder's
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return None

    def _run_with_key(self, client: Any, experiment_id: str) -> str | None:
        """Return the id of a run with this key, created by an earlier process that was killed before it stored the id."""
        from mlflow.entities import ViewType

        runs = client.search_runs([experiment_id], f"tags.`{KEY}` = '{self._tags[KEY]}'", ViewType.ALL, max_results=1)
        return runs[0].info.run_id if runs else None

    def _send_metrics(self, pending: list[Step]) -> None:
        metric = self._entities[0]
        batch: list[Any] = []
        for step, when, values in pending:  # all metrics of a step go in one call, so a kill cannot split a step
            if step <= self._logged:
                continue
            new = [metric(self._accepted(name), value, int(when * 1000), step) for name, value in values.items()]
            if len(batch) + len(new) > BATCH:
                self._client.log_batch(self.run_id, metrics=batch)
                batch = []
            batch += new
        if batch:
            self._client.log_batch(self.run_id, metrics=batch)
        self._logged = max(self._logged, *(step for step, _, _ in pending))

    def _accepted(self, name: str) -> str:
        """Return a metric's name as MLflow accepts it; the first other name is said."""
        taken = accepted(name)
        if taken != name and not self._renamed:
            self._renamed = True
            self._warn(
                f"MLflow does not accept the name {name[:80]!r}; there it is {taken!r}, and others like it likewise."
            )
        return taken

    def _send(self, kind: str, value: Any) -> None:
        if kind == "artifact":
            path, folder = value
            self._client.log_artifact(self.run_id, str(path), folder)
        elif kind == "table":
            name, columns = value
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            self._client.log_dict(self.run_id, {"columns": list(columns), "data": rows}, name)
            self._client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps([{"path": name, "type": "table"}]))
        elif kind == "late":
            step, values = value[0], {self._accepted(name): number for name, number in value[1].items()}
            metric = self._entities[0]
            logged = [n for n in values if any(m.step == step for m in self._client.get_metric_history(self.run_id, n))]
            new = [metric(n, v, int(time.time() * 1000), step) for n, v in values.items() if n not in logged]
            for start in range(0, len(new), BATCH):
                self._client.log_batch(self.run_id, metrics=new[start : start + BATCH])
        elif kind == "tag":
            self._client.set_tag(self.run_id, *value)
        elif kind == "view":
            self._send_view(*value)

    def _send_view(self, name: str, state: dict[str, Any]) -> None:
        """Write a sweep's view; a store that does not take it (an older server, no right to the experiment) goes on without."""
        from mlflow.exceptions import MlflowException

        state = {"searchFilter": f"tags.`mlflow.parentRunId` = '{self.run_id}'"} | state
        view, shown = mlflow_views.OURS + self._tags[KEY], without_known(name)
        try:
            mlflow_views.write(self._client, self._experiment_id, view, shown, state, self._warn)
        except MlflowException as error:
            if error.error_code not in mlflow_views.REFUSED:
                raise
            self._warn(f"MLflow at {without_password(self.uri)} takes no view of {shown} ({reason(error, self.uri)}).")


@contextlib.contextmanager
def first_use_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create a SQLite store: MLflow's own initialisation has a race."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    from filelock import FileLock

    file = sqlite_file(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists() or file.stat().st_size == 0:
            make_store(file)
        yield


def quieten() -> None:
    """Silence the loggers that print a traceback beside the error that MLflow raises; MLflow is imported."""
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def make_store(file: Path) -> None:
    """Make an empty SQLite store, whole or not at all: MLflow would leave one without a version if it were killed here."""
    from mlflow import MlflowClient

    for torn in file.parent.glob(f"{glob.escape(file.name)}.*.tmp*"):
        torn.unlink(missing_ok=True)
    quieten()
    work = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")  # MLflow keeps a store for each name
    try:
        MlflowClient(tracking_uri=f"sqlite:///{quoted(str(work))}").search_experiments(max_results=1)
        work.replace(file)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def status_of(state: object) -> str:
    """Return MLflow's status for the state of a run (``summary.json``)."""
    return {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}.get(str(state), "KILLED")
