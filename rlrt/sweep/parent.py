"""A sweep's own run in MLflow, the parent of its jobs' runs, and bringing there what jobs could not."""

from __future__ import annotations

import logging
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrt.folder import read_json, redacted, write_json
from rlrt.lease import LEASE, held, hold
from rlrt.sweep.plan import SPEC
from rlrt.trackers.mlflow import MlflowTracker

NOTE = "sweep.json"
"""In a sweep's folder: its run in MLflow, and what is needed to make that run later."""
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
    said = "\n\n".join(str(note[k]) for k in ("question", "command") if note.get(k))
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


def note_question(sweep: Path, overrides: Sequence[str], study: Path | None) -> None:
    """Keep what was typed, and a study's question, with the sweep."""
    command = redacted(f"python -m rlrt.run -m {' '.join(map(shlex.quote, overrides))}")
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
    note = read_json(sweep / NOTE)
    tracking = note.get("tracking")
    if not note.get("mlflow_run_id") or not isinstance(tracking, dict) or "***" in str(tracking.get("uri")):
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
    tags = spec.get("tags", {})
    if not spec or tags.get("mlflow.parentRunId") or "rlrt.sweep" not in tags:
        return
    if "mlflow_run_id" not in read_json(sweep / NOTE):
        parent = open_parent(sweep, spec.get("plain", {}).get("tracking", {}), log.warning, uri)
        if parent is not None:
            parent.close("FINISHED")
    known = read_json(sweep / NOTE).get("mlflow_run_id")
    if known:
        write_json(job / SPEC, spec | {"tags": tags | {"mlflow.parentRunId": known}})


def bring_next(queue: list[Path], say: Callable[[str], None]) -> None:
    """Bring the first job of a queue, if there is one; what MLflow or a damaged folder raises never ends a sweep."""
    if not queue:
        return
    job = queue.pop(0)
    try:
        bring(job)
    except Exception as error:
        say(f"WARNING: {job.name} is not in MLflow yet ({error}); python -m rlrt.sync brings it")


def bring(job: Path, uri: str | None = None) -> bool:
    """Bring to MLflow whatever a job's folder has and MLflow has not; returns whether it now has everything.

    Raises:
        Held: if a process runs the job: it talks to MLflow itself.
        UserError: if the job's config cannot be read any more.
    """
    from rlrt.build import replay

    with hold(job / LEASE):
        adopt(job, uri)
        return replay(job, uri)
