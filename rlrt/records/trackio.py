"""Trackio: a second tracker, local first. A run's numbers go into the SQLite file of their project in a folder here.

The library's own ``init`` would look for a Space or a server in the environment and send to it; this calls the storage below
it, which writes here and nowhere else. Files and tables stay in the run's folder: Trackio would copy them.
"""

from __future__ import annotations

import datetime
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records.files import resolved
from rlrt.records.printable import one_line
from rlrt.records.secrets import masked, without_known
from rlrt.records.tracker import Queued, Step

GROUP = "_Group"
"""Key of a run's config by which Trackio groups runs."""
SENDS = ("TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID", "SPACE_REPO_NAME", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Variables by which Trackio would send what is logged to somebody."""


class TrackioTracker(Queued):
    """Writes a run to Trackio's store in a folder.

    Args:
        folder: of the store (Trackio's TRACKIO_DIR).
        project: a project of Trackio's: one SQLite file.
        key: unique key of this run; what was logged under it is not logged twice.
        name: of the run, as its page shows it.
        config: of the run, shown beside it: its settings and its tags.
        warn: called once, with one sentence, if Trackio fails.
        lease: as in ``Queued``.
    """

    def __init__(
        self,
        folder: str,
        project: str,
        key: str,
        name: str,
        config: Mapping[str, str],
        warn: Callable[[str], None],
        lease: Path | None = None,
    ) -> None:
        super().__init__("trackio", warn, lease)
        self._folder, self._project, self._key = resolved(Path(folder)), project, key
        self._name = without_known(name)
        self._config = {k: masked(without_known(v)) for k, v in config.items()}
        self._storage: Any = None
        self._last = 0
        self._thread.start()

    def _failure(self, error: BaseException) -> str:
        return f"Trackio in {one_line(self._folder)} failed ({type(error).__name__}: {one_line(error)})"

    def _start(self) -> None:
        self._storage = storage(self._folder)
        self._storage.validate_project_name(self._project)
        self._config["state"] = "RUNNING"

    def _send_metrics(self, pending: list[Step]) -> None:
        finite = [{k: v for k, v in values.items() if math.isfinite(v)} for _, _, values in pending]
        self._log([step for step, _, _ in pending], [when for _, when, _ in pending], finite, "")
        self._last = pending[-1][0]

    def _send(self, kind: str, value: Any) -> None:
        if kind == "late":
            step, values = value
            name = "+".join(sorted(values))  # each set of late metrics is logged once at a step
            self._log([step], [datetime.datetime.now().timestamp()], [values], f"-{name}")
        elif kind == "tag":
            self._config[value[0]] = masked(value[1])

    def _log(self, steps: list[int], whens: list[float], values: list[dict[str, float]], suffix: str) -> None:
        self._storage.bulk_log(
            self._project,
            self._name,
            values,
            steps=steps,
            timestamps=[datetime.datetime.fromtimestamp(when, datetime.UTC).isoformat() for when in whens],
            config=self._config,
            log_ids=[f"{self._key}-{step}{suffix}" for step in steps],
            run_id=self._key,
        )

    def _end(self, status: str) -> None:
        self._config["state"] = status
        # the store knows the last step's id and takes the config alone
        self._log([self._last], [datetime.datetime.now().timestamp()], [{}], "")


def storage(folder: Path) -> Any:
    """Return Trackio's storage in a folder.

    Raises:
        UserError: if this process has used another folder already, which Trackio keeps for good.
    """
    for name in SENDS:
        os.environ.pop(name, None)
    os.environ["TRACKIO_DIR"] = str(folder)
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import TRACKIO_DIR

    if Path(TRACKIO_DIR) != folder:
        raise UserError(f"this process writes to {TRACKIO_DIR} already")
    return SQLiteStorage


def check_store(folder: str, project: str) -> None:
    """Refuse a store that Trackio cannot have.

    Raises:
        UserError: naming the key.
    """
    if not folder.strip():
        raise UserError("tracking.trackio: expected a folder or null, got an empty text.")
    if not re.fullmatch(r"[\w-][\w .-]{0,99}", project, re.ASCII):
        raise UserError(
            "tracking.experiment: expected letters, digits, spaces, points and dashes where tracking.trackio is set, since "
            f"Trackio names a file after it, got {one_line(project, 100)!r}."
        )


def check_trackio() -> None:
    """Refuse to go on without the package; it is not imported for that.

    Raises:
        UserError: naming the key and how it is installed.
    """
    if importlib.util.find_spec("trackio") is None:
        raise UserError(
            "tracking.trackio needs the package trackio, which is not installed in this environment: make setup EXTRAS=trackio."
        )
