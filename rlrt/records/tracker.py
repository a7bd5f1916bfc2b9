"""Trackers: where a run is shown besides its own folder. Each sends from a thread of its own; none can stop a run.

A service (MLflow, Trackio) fills in how a run is opened, how numbers and files are sent, and how the run ends.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlrt.errors import Replaced
from rlrt.records.claims import refuse_replaced

Step = tuple[int, float, dict[str, float]]
"""Step, when it was recorded (seconds since 1970), metrics."""
PATIENCE_S = 300.0
"""Seconds that a service gets at a run's end. One that does not answer fails much earlier, by the limits of its own client; a
machine under load takes a minute to import it and to make a store."""


class Tracker(Protocol):
    """The few calls that a run makes."""

    @property
    def run_id(self) -> str | None:
        """The id that the service gave the run; None before that, and where it gives none."""

    def wait_for_run(self, seconds: float) -> str | None:
        """Wait until the service has given the run an id and return it, or None if that takes longer than ``seconds``."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Queue the metrics of a step; what the service already has is not sent again."""

    def late_metrics(self, step: int, values: dict[str, float]) -> None:
        """Queue metrics of an earlier step; what the service already has at that step is not sent again."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file of the run's folder."""

    def table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """Queue a table; it replaces an earlier table of that name, so that a resume duplicates no rows."""

    def tag(self, name: str, value: str) -> None:
        """Queue a tag."""

    def close(self, status: str, seconds: float = PATIENCE_S) -> bool:
        """Send the queue, then end the run with MLflow's ``status``; return False if the service did not get everything."""

    def abandon(self) -> None:
        """Send nothing more, and leave the run as it is: another process goes on with it."""


class Queued:
    """A tracker whose calls queue, and whose thread sends.

    Args:
        service: its name, for the thread and the warning.
        warn: called once, with one sentence, if the service fails.
        lease: of the folder whose run this is; once another process has taken it over from this one, nothing more
            is sent. None: no other process goes on with this run.
    """

    def __init__(self, service: str, warn: Callable[[str], None], lease: Path | None = None) -> None:
        self.run_id: str | None = None
        self.failed = False
        self._warn, self._lease = warn, lease
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._ready, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=service, daemon=True)

    def wait_for_run(self, seconds: float) -> str | None:
        """As ``Tracker.wait_for_run``."""
        self._ready.wait(seconds)
        return self.run_id

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """As ``Tracker.metrics``."""
        self._queue.put(("metrics", (step, time.time(), values)))

    def late_metrics(self, step: int, values: dict[str, float]) -> None:
        """As ``Tracker.late_metrics``."""
        self._queue.put(("late", (step, values)))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """As ``Tracker.artifact``."""
        self._queue.put(("artifact", (path, folder)))

    def table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """As ``Tracker.table``."""
        self._queue.put(("table", (name, columns)))

    def tag(self, name: str, value: str) -> None:
        """As ``Tracker.tag``."""
        self._queue.put(("tag", (name, value)))

    def close(self, status: str, seconds: float = PATIENCE_S) -> bool:
        """As ``Tracker.close``."""
        self._queue.put(("end", status))
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(TimeoutError(f"no answer within {seconds:g} s"))
        return not self.failed

    def abandon(self) -> None:
        """As ``Tracker.abandon``."""
        self._abandoned.set()
        self._queue.put(("end", ""))

    def _work(self) -> None:
        try:
            self._start()
            self._ready.set()
            pending: list[Step] = []
            while True:
                kind, value = self._queue.get()
                self._refuse_left()
                if kind == "metrics":
                    pending.append(value)
                if pending and (kind != "metrics" or self._queue.empty()):
                    self._send_metrics(pending)
                    pending = []
                if kind == "end":
                    self._end(value)
                    return
                self._send(kind, value)
        except Replaced:  # the process itself says so
            self.failed = True
        except Exception as error:  # services, requests and databases raise many types; none may stop a run
            self._fail(error)
        finally:
            self._ready.set()

    def _refuse_left(self) -> None:
        """Refuse to touch a run with which another process goes on; this thread may be the first to see it.

        Raises:
            Replaced: if the tracker was abandoned, or the folder taken over.
        """
        if self._abandoned.is_set():
            raise Replaced("the tracker was abandoned")
        if self._lease is not None:
            refuse_replaced(self._lease)

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            self.failed = True
            self._warn(f"{self._failure(error)}; the run goes on and its folder records everything.")

    def _failure(self, error: BaseException) -> str:
        """Say what failed, where and why, without a secret."""
        raise NotImplementedError

    def _start(self) -> None:
        """Open the run, the same one as before where the service has it."""
        raise NotImplementedError

    def _send_metrics(self, pending: list[Step]) -> None:
        """Send the metrics of some steps."""
        raise NotImplementedError

    def _send(self, kind: str, value: Any) -> None:
        """Send anything else; ``kind`` is late, artifact, table or tag."""
        raise NotImplementedError

    def _end(self, status: str) -> None:
        """End the run."""
        raise NotImplementedError


class Several:
    """Trackers that all get the same; the first one's run id is the run's."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    @property
    def run_id(self) -> str | None:
        """The first tracker's."""
        return self._trackers[0].run_id

    def wait_for_run(self, seconds: float) -> str | None:
        """As ``Tracker.wait_for_run``, of the first."""
        return self._trackers[0].wait_for_run(seconds)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """As ``Tracker.metrics``."""
        for tracker in self._trackers:
            tracker.metrics(step, values)

    def late_metrics(self, step: int, values: dict[str, float]) -> None:
        """As ``Tracker.late_metrics``."""
        for tracker in self._trackers:
            tracker.late_metrics(step, values)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """As ``Tracker.artifact``."""
        for tracker in self._trackers:
            tracker.artifact(path, folder)

    def table(self, name: str, columns: dict[str, list[Any]]) -> None:
        """As ``Tracker.table``."""
        for tracker in self._trackers:
            tracker.table(name, columns)

    def tag(self, name: str, value: str) -> None:
        """As ``Tracker.tag``."""
        for tracker in self._trackers:
            tracker.tag(name, value)

    def close(self, status: str, seconds: float = PATIENCE_S) -> bool:
        """As ``Tracker.close``: True if all have everything."""
        end = time.monotonic() + seconds
        complete = [tracker.close(status, max(1.0, end - time.monotonic())) for tracker in self._trackers]
        return all(complete)

    def abandon(self) -> None:
        """As ``Tracker.abandon``."""
        for tracker in self._trackers:
            tracker.abandon()
