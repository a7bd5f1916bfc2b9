"""A real ``mlflow server``: stopped and started in the middle of a run, away at its start, back for the next life."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from rlrt.execution.tracking import replay
from tests.records.test_mlflow import client, go
from tests.sweep.test_driver import SMALL, finish, only, run, start, summaries, wait_for

QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


class Server:
    """``mlflow server`` on a port of its own; ``up`` and ``down`` as often as wanted, on the same store."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder, self._process = f"http://127.0.0.1:{self.port}", folder, None

    def up(self):
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port),
                "--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination", f"{self.folder}/art",
            ],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        wait_for(self.answers)

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def down(self):
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(30)
            self._process = None


@pytest.fixture
def server(tmp_cwd):
    made = Server(tmp_cwd)
    yield made
    made.down()


def steps(uri, run_id, name):
    return [m.step for m in sorted(client(uri).get_metric_history(run_id, name), key=lambda m: m.timestamp)]


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_server_that_dies_in_the_middle_costs_nothing(server, tmp_cwd, monkeypatch, held):
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    server.up()
    hold = held(steps=8)
    typed = (
        "method=grpo", "train.steps=20", *SMALL[:2], "train.eval_every=0", f"tracking.uri={server.uri}", *hold.keys,
    )  # fmt: skip
    process = start(tmp_cwd, *typed, f"hydra.run.dir={tmp_cwd}/run", **QUICK)
    wait_for(hold.waiting)
    wait_for(lambda: [r for r in client(server.uri).search_runs(["1"]) if "reward/mean" in r.data.metrics])
    server.down()
    hold.release()
    code, output = finish(process)
    assert code == 0, output
    assert output.count("the run goes on and its folder records everything") == 1
    assert lines(tmp_cwd / "run") == 21
    run_id = manifest(tmp_cwd / "run")["mlflow_run_id"]
    server.up()
    had = steps(server.uri, run_id, "reward/mean")
    assert 0 < len(had) <= 8
    code, output = run(tmp_cwd, str(tmp_cwd), module="rlrt.sync")
    assert code == 0, output
    assert "1 of 1 runs" in output
    assert sorted(steps(server.uri, run_id, "reward/mean")) == list(range(1, 21))  # none missing, none twice
    assert client(server.uri).get_run(run_id).info.status == "FINISHED"
    files = {f.path for f in client(server.uri).list_artifacts(run_id)}
    assert {"config.yaml", "manifest.json", "samples.json"} <= files


def lines(folder):
    return len((folder / "metrics.jsonl").read_text().splitlines())


def test_a_life_without_a_server_is_made_up_in_the_next(server, tmp_cwd, monkeypatch):
    """Down for the first life of a run and up for the second: the run there has the first one's steps too."""
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    more = (f"tracking.uri={server.uri}", "train.steps=4")
    go(tmp_cwd / "run", *more, stop_after=2)
    assert "mlflow_run_id" not in manifest(tmp_cwd / "run")
    server.up()
    assert go(tmp_cwd / "run", *more)["mlflow_complete"] is True
    run_id = manifest(tmp_cwd / "run")["mlflow_run_id"]
    assert steps(server.uri, run_id, "reward/mean") == [1, 2, 3, 4]
    assert steps(server.uri, run_id, "eval/greedy") == [0, 4]
    assert replay(tmp_cwd / "run")  # and once more changes nothing
    assert steps(server.uri, run_id, "reward/mean") == [1, 2, 3, 4]


@pytest.mark.long
def test_a_sweep_begun_without_its_server_gets_its_parent_by_sync(server, tmp_cwd):
    typed = (
        "-m",
        "method=grpo",
        "seed=0,1",
        "train.steps=2",
        *SMALL[:2],
        "train.eval_every=0",
        f"tracking.uri={server.uri}",
    )
    code, output = run(tmp_cwd, *typed, **QUICK)
    assert code == 0, output
    assert {s["mlflow_complete"] for s in summaries(tmp_cwd).values()} == {False}
    server.up()
    code, output = run(tmp_cwd, str(only(tmp_cwd)), module="rlrt.sync")
    assert code == 0, output
    parent = json.loads((only(tmp_cwd) / "sweep.json").read_text())["mlflow_run_id"]
    children = client(server.uri).search_runs(["1"], f"tags.mlflow.parentRunId = '{parent}'")
    assert {r.data.tags["rlrt.seed"] for r in children} == {"0", "1"}
    assert len(client(server.uri).search_runs(["1"])) == 3


def test_a_run_killed_before_it_could_note_its_id_is_found_again(uri, tmp_cwd):
    go(tmp_cwd / "run", f"tracking.uri={uri}", stop_after=2)
    papers = manifest(tmp_cwd / "run")
    first = papers.pop("mlflow_run_id")
    (tmp_cwd / "run" / "manifest.json").write_text(json.dumps(papers))
    go(tmp_cwd / "run", f"tracking.uri={uri}")
    assert manifest(tmp_cwd / "run")["mlflow_run_id"] == first
    assert len(client(uri).search_runs(["1"])) == 1
    assert steps(uri, first, "reward/mean") == [1, 2, 3]


def test_another_store_gets_the_whole_run(uri, tmp_cwd):
    go(tmp_cwd / "run", f"tracking.uri={uri}", stop_after=2)
    other = f"sqlite:///{tmp_cwd}/other.db"
    go(tmp_cwd / "run", f"tracking.uri={other}")
    run_id = manifest(tmp_cwd / "run")["mlflow_run_id"]
    assert steps(other, run_id, "reward/mean") == [1, 2, 3]
