"""Trackio: the numbers that MLflow gets, in a local store; both at once; nothing leaves the machine."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys

import pytest

from rlrt.errors import UserError
from rlrt.execution.tracking import stored, where_to_look
from rlrt.records.trackio import check_store
from tests.helpers import settings
from tests.records.test_mlflow import SMALL, client
from tests.sweep.test_driver import ENVIRONMENT

installed = pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None, reason="make setup EXTRAS=trackio installs trackio"
)
SENT = """
import socket, sys
def refused(*_): raise OSError("a test forbids connections")
socket.socket.connect = refused
sys.argv[0] = "run"
from rlrt.run import main
main()
"""
"""A run in which nothing can be sent."""


def go(cwd, *words, **environment):
    """A run as a process of its own, since Trackio keeps its folder for a process."""
    return subprocess.run(
        [sys.executable, "-c", SENT, "method=rlrt", *SMALL, "hydra.run.dir=run", *words],
        cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def rows(cwd, store="store"):
    """(step, metrics) in the order in which they were stored, and the runs' configs."""
    with sqlite3.connect(cwd / store / "rlrt.db") as base:
        found = [
            (step, json.loads(text)) for step, text in base.execute("select step, metrics from metrics order by id")
        ]
        return found, [json.loads(text) for (text,) in base.execute("select config from configs")]


@installed
def test_both_trackers_get_the_same_numbers_once_through_a_resume(tmp_cwd, uri):
    words = (f"tracking.uri={uri}", "tracking.trackio=store")
    elsewhere = {"TRACKIO_SPACE_ID": "somebody/space", "TRACKIO_SERVER_URL": "https://example.org/?write_token=x"}
    done = go(tmp_cwd, *words, "train.steps=2", **elsewhere)
    assert done.returncode == 0, done.stderr
    done = go(tmp_cwd, *words, "+from=run", "train.steps=3", "hydra.run.dir=more", **elsewhere)
    assert done.returncode == 0, done.stderr
    done = go(tmp_cwd, *words, "train.steps=2", **elsewhere)  # which is finished, and logs nothing twice
    assert done.returncode == 0, done.stderr
    assert "trackio show --project rlrt" in done.stdout
    record = [json.loads(line) for line in (tmp_cwd / "run" / "metrics.jsonl").read_text().splitlines()]
    found, configs = rows(tmp_cwd)
    first = [(step, metrics) for step, metrics in found][: len(record)]
    assert [step for step, _ in first] == [0, 1, 2]
    for line, (step, metrics) in zip(record, first, strict=True):
        assert metrics == {k: v for k, v in line.items() if k != "step"}, step
    assert {c["state"] for c in configs} == {"FINISHED"}
    assert {c["method.name"] for c in configs} == {"rlrt"}
    run_id = json.loads((tmp_cwd / "run" / "manifest.json").read_text())["mlflow_run_id"]
    history = {m.step: m.value for m in client(uri).get_metric_history(run_id, "reward/mean")}
    assert history == {line["step"]: line["reward/mean"] for line in record if "reward/mean" in line}


@installed
def test_trackio_alone_shows_a_sweep_as_a_group(tmp_cwd):
    words = ("-m", "seed=0,1", "tracking=trackio", "tracking.trackio=store", "hydra.sweep.dir=sweep")
    done = subprocess.run(
        [sys.executable, "-m", "rlrt.run", "method=grpo", *SMALL, *words],
        cwd=tmp_cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, configs = rows(tmp_cwd)
    assert sorted(step for step, _ in found) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {c["_Group"] for c in configs} == {"sweep"}
    assert {c["seed"] for c in configs} == {"0", "1"}


@installed
def test_a_store_that_cannot_be_written_costs_one_warning(tmp_cwd):
    (tmp_cwd / "store").write_text("a file")
    done = go(tmp_cwd, "tracking=trackio", "tracking.trackio=store")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Trackio in") == 1
    assert "the run goes on and its folder records everything" in done.stderr
    assert json.loads((tmp_cwd / "run" / "summary.json").read_text())["mlflow_complete"] is False


@pytest.mark.parametrize("project", ["", "a/b", "../x", "x" * 101, ".hidden", "a\nb"])
def test_a_project_that_is_no_name_of_a_file_is_refused(project):
    with pytest.raises(UserError, match=r"^tracking\.experiment: expected letters"):
        check_store("store", project)


def test_how_to_look_is_said_for_each():
    tracking = settings("tracking.trackio=a b").tracking
    assert [line.partition(" show ")[2] for line in where_to_look(tracking) if "TRACKIO_DIR='" in line] == [
        "--project rlrt"
    ]
    assert where_to_look(settings("tracking=none").tracking) == []


@pytest.mark.parametrize(("folder", "kept"), [("outputs/trackio", True), ("/etc", False), ("../x", False)])
def test_a_folder_from_elsewhere_does_not_say_where_files_are_written(tmp_cwd, folder, kept):
    run = tmp_cwd / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"tracking: {{uri: null, trackio: {folder}}}\n")
    assert stored(run).tracking.trackio == (folder if kept else None)
    assert stored(run, trust=True).tracking.trackio == folder
