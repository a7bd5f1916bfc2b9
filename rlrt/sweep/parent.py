"""A sweep's own run in MLflow, the parent of its jobs' runs, and bringing there what jobs could not."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.errors import UserError
from rlrt.records.files import mapping, read_json, write_json
from rlrt.records.lease import LEASE, held, hold
from rlrt.records.mlflow import MlflowTracker
from rlrt.records.secrets import command_line, masked, redacted
from rlrt.sweep.plan import SPEC

NOTE = "sweep.json"
"""In a sweep's folder: its run in MLflow, and what is needed to make that run later."""
FENCE = "``````"
"""Around a command in a note of MLflow."""
WAIT_S = 60.0
"""Seconds that a driver waits for MLflow to give the sweep its run."""

log = logging.getLogger("rlrt")


def open_parent(sweep: Path, tracking: Mapping[str, Any], warn: Any, uri: str | None = None) -> MlflowTracker | None:
    """The sweep's run, the same one when the sweep goes on; None where ``tracking.uri`` names no MLflow.

    Args:
        sweep: the sweep's folder.
        tracking: ``tracking.*`` of its jobs.
        warn: told in one sentence when MLflow fails.
        uri: instead of ``tracking.uri``.
    """
    place = uri or tracking.get("uri")
    if not place:
        return None
    note = {"key": secrets.token_hex(8)} | read_json(sweep / NOTE) | {"tracking": redacted(dict(tracking))}
    write_json(sweep / NOTE, note)
    asked = [str(note["question"])] if note.get("question") else []
    if note.get("command"):  # MLflow's page reads the note as Markdown
        asked.append(f"{FENCE}\n{note['command']}\n{FENCE}")
    said = "\n\n".join(asked)
    parent = MlflowTracker(
        uri=place,
        experiment=tracking["experiment"],
        artifacts=tracking["artifacts"],
        run_id=note.get("mlflow_run_id"),
        key=note["key"],
        name=sweep.name,
        tags={"rlrt.sweep": sweep.name, "rlrt.folder": str(sweep.resolve()), "rlrt.kind": "sweep"}
        | ({"mlflow.note.content": said} if said else {}),
        params={},
        warn=warn,
    )
    if parent.wait_for_run(WAIT_S):
        write_json(sweep / NOTE, note | {"mlflow_run_id": parent.run_id})
    return parent


def note_question(sweep: Path, words: Sequence[str], study: Path | None) -> None:
    """Keep the command that was typed (``words`` follow its ``-m``), and a study's question, with the sweep."""
    command = f"python -m rlrt.run -m {command_line(words)}"
    lines = study.read_text().splitlines() if study is not None and study.is_file() else []
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    question = comment.partition("Question: ")[2].partition("?")[0]
    more = {"question": f"{question}?"} if question else {}
    write_json(sweep / NOTE, read_json(sweep / NOTE) | {"command": command, **more})


def closing_report(sweep: Path, parent: MlflowTracker | None, say: Callable[[str], None]) -> None:
    """A sweep's report, in its folder and its run in MLflow; what goes wrong with it never ends a sweep."""
    from rlrt.reporting.page import read, write

    try:
        files = write(read(sweep, None))
    except Exception as error:
        say(f"WARNING: no report could be made of {sweep} ({error}); python -m rlrt.report tries again")
        return
    say(f"report: {files[0]}")
    if parent is not None:
        for file in files:
            parent.artifact(file, "report")


def send_report(sweep: Path, files: Sequence[Path]) -> None:
    """A sweep's report to its run in MLflow, where it has one whose URI needs no password."""
    from rlrt.execution.tracking import refuse_to_send_credentials

    note = read_json(sweep / NOTE)
    tracking = note.get("tracking")
    if not note.get("mlflow_run_id") or not isinstance(tracking, dict) or "***" in str(tracking.get("uri")):
        return
    try:
        refuse_to_send_credentials(sweep, tracking.get("uri"))
    except UserError as error:
        log.warning("the report stays here: %s", error)
        return
    parent = open_parent(sweep, tracking, log.warning)
    if parent is not None:
        for file in files:
            parent.artifact(file, "report")
        parent.close("RUNNING" if held(sweep / "driver") else "FINISHED")


def job_tags(sweep: Path, parent: MlflowTracker | None) -> dict[str, str]:
    """The tags that lead from a job's run to its sweep's."""
    linked = {"mlflow.parentRunId": parent.run_id} if parent is not None and parent.run_id else {}
    return {"rlrt.sweep": sweep.name} | linked


def adopt(job: Path, uri: str | None = None) -> None:
    """Give a job its sweep's run as parent where MLflow was away when the sweep began."""
    spec, sweep = read_json(job / SPEC), job.parent
    tags = mapping(spec.get("tags"))
    if not spec or tags.get("mlflow.parentRunId") or "rlrt.sweep" not in tags:
        return
    if "mlflow_run_id" not in read_json(sweep / NOTE):
        tracking = mapping(mapping(spec.get("plain")).get("tracking"))
        parent = open_parent(sweep, tracking, log.warning, uri)
        if parent is not None:
            parent.close("FINISHED")
    known = read_json(sweep / NOTE).get("mlflow_run_id")
    if known:
        write_json(job / SPEC, spec | {"tags": tags | {"mlflow.parentRunId": known}}, private=True)


def bring_next(queue: list[Path], say: Callable[[str], None]) -> None:
    """Bring the first job of a queue, if there is one; what MLflow or a damaged folder raises never ends a sweep."""
    if not queue:
        return
    job = queue.pop(0)
    try:
        bring(job, trust=True)  # a job of the sweep that this driver drives
    except Exception as error:
        say(f"WARNING: {job.name} is not in MLflow yet ({masked(str(error))}); python -m rlrt.sync brings it")


def bring(job: Path, uri: str | None = None, trust: bool = False) -> bool:
    """Bring to MLflow whatever a job's folder has and MLflow has not; returns whether it now has everything.

    Args:
        job: its folder.
        uri: instead of its own tracking URI.
        trust: whether its own server may get this environment's credentials.

    Raises:
        Held: if a process runs the job: it talks to MLflow itself.
        UserError: if the job's config cannot be read any more.
    """
    from rlrt.execution.tracking import replay, stored

    with hold(job / LEASE):
        stored(job, uri, trust)  # refused before anybody is spoken to
        adopt(job, uri)
        return replay(job, uri, trust)
