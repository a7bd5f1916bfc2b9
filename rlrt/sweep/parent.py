"""The parent run of a sweep in MLflow, and the upload of records that jobs could not send themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, first_line
from rlrt.records.files import is_file, mapping, named_below, read_json, resolved, whole, write_json
from rlrt.records.folder import is_key
from rlrt.records.jsonlines import is_number
from rlrt.records.lease import LEASE, hold_lease, is_held
from rlrt.records.mlflow import MlflowTracker
from rlrt.records.secrets import MASK, command_line, masked, redacted
from rlrt.sweep.plan import SPEC
from rlrt.sweep.state import job_folders, job_state
from rlrt.sweep.view import send_view

NOTE = "sweep.json"
"""File in a sweep's folder with the id of its parent run in MLflow, and the values needed to create that run later."""
FENCE = "``````"
"""Markdown fence around a command in a note of MLflow."""
WAIT_S = 60.0
"""Seconds that a driver waits for MLflow to give the sweep its run."""

log = logging.getLogger("rlrt")


def open_parent(
    sweep: Path, tracking: Mapping[str, Any], warn: Any, uri: str | None = None, foreign: bool = False
) -> MlflowTracker | None:
    """Open the sweep's parent run, the same one when the sweep continues; None if ``tracking.uri`` is null.

    Args:
        sweep: the sweep's folder.
        tracking: ``tracking.*`` of its jobs.
        warn: called with one sentence if MLflow fails.
        uri: tracking URI to use instead of ``tracking.uri``.
        foreign: True if ``tracking`` was read from the sweep's folder, which is not trusted.
    """
    store = uri or tracking.get("uri")
    if not store:
        return None
    stored = read_json(sweep / NOTE)
    key = stored["key"] if is_key(stored.get("key")) else secrets.token_hex(8)
    kept = mapping(stored.get("tracking")) if foreign else {}  # of which this may be a part
    note = stored | {"key": key, "tracking": kept or redacted(dict(tracking))}
    write_json(sweep / NOTE, note)
    parts = [str(note["question"])] if note.get("question") else []
    if note.get("command"):  # MLflow's page reads the note as Markdown
        parts.append(f"{FENCE}\n{str(note['command']).replace(FENCE, '')}\n{FENCE}")
    description = "\n\n".join(parts)
    parent = MlflowTracker(
        uri=store,
        experiment=tracking["experiment"],
        artifacts=tracking["artifacts"],
        run_id=run_id if isinstance(run_id := note.get("mlflow_run_id"), str) else None,
        key=key,
        name=sweep.name,
        tags={"rlrt.sweep": sweep.name, "rlrt.folder": str(resolved(sweep)), "rlrt.kind": "sweep"}
        | ({"mlflow.note.content": description} if description else {}),
        params={},
        warn=warn,
        lease=sweep / "driver",
        foreign=foreign,
    )
    if parent.wait_for_run(WAIT_S):
        write_json(sweep / NOTE, note | {"mlflow_run_id": parent.run_id})
    return parent


def note_question(sweep: Path, arguments: Sequence[str], study: Path | None) -> None:
    """Store the sweep's command (``arguments`` follow its ``-m``) and its study's question in the sweep's folder."""
    command = f"python -m rlrt.run -m {command_line(arguments)}"
    lines = study.read_text().splitlines() if study is not None and study.is_file() else []
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    question = comment.partition("Question: ")[2].partition("?")[0]
    more = {"question": f"{question}?"} if question else {}
    write_json(sweep / NOTE, read_json(sweep / NOTE) | {"command": command, **more})


def closing_report(sweep: Path, parent: MlflowTracker | None, say: Callable[[str], None]) -> None:
    """Write a sweep's report to its folder and its parent run in MLflow; an error in it never ends the sweep."""
    from rlrt.reporting.page import read, write

    try:
        files = write(read(sweep, None))
    except Exception as error:
        reason = masked(first_line(error))
        say(f"WARNING: the report of {sweep} could not be written ({reason}); python -m rlrt.report tries again")
        return
    say(f"report: {files[0]}")
    if parent is not None:
        for file in files:
            parent.artifact(file, "report")


def send_report(sweep: Path, files: Sequence[Path]) -> None:
    """Send a sweep's report to its parent run in MLflow, if it has one whose URI needs no password."""
    from rlrt.execution.tracking import stored_tracking

    note = read_json(sweep / NOTE)
    tracking = mapping(note.get("tracking"))
    if not note.get("mlflow_run_id") or not tracking or MASK in str(tracking.get("uri")):
        return
    try:
        usable = stored_tracking(sweep, tracking, None, trust=False)
    except UserError as error:
        log.warning("the report was not sent to MLflow: %s", error)
        return
    parent = open_parent(sweep, dataclasses.asdict(usable), log.warning, foreign=True)
    if parent is not None:
        for file in files:
            parent.artifact(file, "report")
        send_view(sweep, parent)
        parent.close("RUNNING" if is_held(sweep / "driver") else status_of_sweep(sweep))


def end_parent(sweep: Path, parent: MlflowTracker, status: str, closing: Mapping[str, Any]) -> bool:
    """End a sweep's run in MLflow, and note in the sweep's folder how, for ``rlrt.sync``; True if MLflow got everything.

    Args:
        status: MLflow's; RUNNING if jobs go on without a driver.
        closing: tags, metrics and their step.
    """
    for name, value in mapping(closing.get("tags")).items():
        parent.tag(str(name), str(value))
    if numbers := mapping(closing.get("metrics")):
        parent.late_metrics(whole(closing.get("step")), {str(k): float(v) for k, v in numbers.items() if is_number(v)})
    send_view(sweep, parent)
    complete = parent.close(status)
    found = {"mlflow_run_id": parent.run_id} if parent.run_id else {}
    ending = {"mlflow_complete": complete and status != "RUNNING", "mlflow_status": status, "closing": dict(closing)}
    if (sweep / NOTE).is_file():  # a folder that was removed is not made anew
        with contextlib.suppress(OSError):
            write_json(sweep / NOTE, read_json(sweep / NOTE) | found | ending)
    return complete


def status_of_sweep(sweep: Path) -> str:
    """Return the status of a sweep's run in MLflow: by its driver's last words, and without them by its jobs."""
    said = read_json(sweep / NOTE).get("mlflow_status")
    if said in ("FINISHED", "FAILED", "KILLED"):
        return str(said)
    states = [job_state(folder) for folder in job_folders(sweep)]
    if any(state.alive for state in states):
        return "RUNNING"
    return "FINISHED" if all(state.done for state in states) else "KILLED"


def incomplete_sweeps(root: Path) -> list[Path]:
    """List the sweeps without a driver whose own run MLflow did not see end."""
    found = []
    for file in named_below(root, NOTE):
        note = read_json(file)
        tracked = mapping(note.get("tracking")).get("uri")
        if tracked and note.get("mlflow_complete") is not True and not is_held(file.parent / "driver"):
            found.append(file.parent)
    return found


def bring_sweep(sweep: Path, uri: str | None = None, trust: bool = False) -> bool:
    """End a sweep's own run in MLflow, with its report, where MLflow was away when its driver ended.

    Args:
        sweep: the sweep's folder.
        uri: tracking URI to use instead of the sweep's own.
        trust: allow the sweep's own server to get this environment's credentials.

    Raises:
        UserError: for a URI whose password is not known, or a server that is not trusted.
    """
    from rlrt.execution.tracking import stored_tracking

    note = read_json(sweep / NOTE)
    tracking = mapping(note.get("tracking"))
    specs = (mapping(mapping(read_json(folder / SPEC).get("plain")).get("tracking")) for folder in job_folders(sweep))
    typed = uri or next((str(own["uri"]) for own in specs if own.get("uri")), str(tracking.get("uri")))
    usable = stored_tracking(sweep, tracking | {"uri": typed}, uri, trust)
    parent = open_parent(sweep, dataclasses.asdict(usable), log.warning, uri, foreign=not trust)
    if parent is None:
        return True
    for file in (sweep / "report.html", sweep / "report.md", *sorted((sweep / "report").glob("*"))):
        if is_file(file):
            parent.artifact(file, "report")
    return end_parent(sweep, parent, status_of_sweep(sweep), mapping(note.get("closing")))


def job_tags(sweep: Path, parent: MlflowTracker | None) -> dict[str, str]:
    """Return the tags that link a job's run to its sweep's parent run."""
    linked = {"mlflow.parentRunId": parent.run_id} if parent is not None and parent.run_id else {}
    return {"rlrt.sweep": sweep.name} | linked


def adopt(job: Path, uri: str | None = None, trust: bool = False) -> None:
    """Link a job to its sweep's parent run if MLflow could not be reached when the sweep began; arguments as ``bring``."""
    from rlrt.execution.tracking import stored_tracking

    spec, sweep = read_json(job / SPEC), job.parent
    tags = mapping(spec.get("tags"))
    if not spec or tags.get("mlflow.parentRunId") or "rlrt.sweep" not in tags:
        return
    if "mlflow_run_id" not in read_json(sweep / NOTE):
        tracking = stored_tracking(job, mapping(spec.get("plain")).get("tracking"), uri, trust)
        parent = open_parent(sweep, dataclasses.asdict(tracking), log.warning, uri, foreign=not trust)
        if parent is not None:
            parent.close("FINISHED")
    parent_id = read_json(sweep / NOTE).get("mlflow_run_id")
    if parent_id:
        write_json(job / SPEC, spec | {"tags": tags | {"mlflow.parentRunId": parent_id}}, private=True)


def bring_next(queue: list[Path], say: Callable[[str], None]) -> None:
    """Send the first job of a queue to MLflow, if any; an error from MLflow or a damaged folder never ends the sweep."""
    if not queue:
        return
    job = queue.pop(0)
    try:
        bring(job, trust=True)  # a job of the sweep that this driver drives
    except Exception as error:
        say(f"WARNING: {job.name} is not in MLflow yet ({masked(str(error))}); python -m rlrt.sync sends it")


def bring(job: Path, uri: str | None = None, trust: bool = False) -> bool:
    """Send to MLflow what it lacks of a job's records; return True if MLflow then has everything.

    Args:
        job: the job's folder.
        uri: tracking URI to use instead of the job's own.
        trust: allow the job's own server to get this environment's credentials.

    Raises:
        LeaseTaken: if a process runs the job, since that process sends to MLflow itself.
        UserError: if the job's config can no longer be read.
    """
    from rlrt.execution.tracking import replay, stored

    with hold_lease(job / LEASE):
        stored(job, uri, trust)  # refuse a bad config before any server is contacted
        adopt(job, uri, trust)
        return replay(job, uri, trust)
