from __future__ import annotations

import json
import os
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlrt.errors import UserError
from rlrt.execution.execute import execute
from rlrt.execution.tracking import replay
from rlrt.records import mlflow_uri
from rlrt.records.mlflow import MlflowTracker
from rlrt.records.mlflow_uri import absolute, check_uri
from rlrt.records.secrets import without_password
from tests.forked import forget_connections, import_what_runs_need
from tests.helpers import settings

SMALL = (
    "train.steps=3",
    "train.prompts_per_step=2",
    "train.eval_every=0",
    "eval.prompts=4",
    "tracking.samples_every=2",
)


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def go(folder, *more, stop_after=None):
    asked = iter(range(1, 100))
    stop = (lambda: next(asked) >= stop_after) if stop_after else (lambda: False)
    return execute(settings(*SMALL, *more), folder, lambda line: None, stop)


def test_a_run_is_all_there(tmp_cwd, uri):
    summary = go(tmp_cwd / "run", f"tracking.uri={uri}")
    assert summary["mlflow_complete"] is True
    manifest = json.loads((tmp_cwd / "run" / "manifest.json").read_text())
    found = client(uri).get_run(manifest["mlflow_run_id"])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params["train.lr"] == str(settings().train.lr)
    assert found.data.tags["rlrt.method"] == "rlrt"
    assert found.data.tags["rlrt.lambda"] == "0.5"
    assert found.data.tags["rlrt.identity"] == manifest["identity"]
    assert found.data.tags["rlrt.state"] == "finished"
    lines = [json.loads(line) for line in (tmp_cwd / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("reward/mean", "eval/avg_at_8", "policy/grad_norm"):
        history = client(uri).get_metric_history(found.info.run_id, name)
        assert {m.step: m.value for m in history} == {x["step"]: x[name] for x in lines if name in x}
        assert len(history) == len({m.step for m in history})
    files = {f.path for f in client(uri).list_artifacts(found.info.run_id)}
    assert {"config.yaml", "manifest.json", "summary.json", "samples.json"} <= files
    assert not (tmp_cwd / "mlruns").exists()


@pytest.mark.parametrize(
    ("said", "there"),
    [
        ("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id, datasets.name", True),
        ('duplicate key value violates unique constraint "dataset_pk"', True),
        ("(1062, \"Duplicate entry '1-x' for key 'datasets.PRIMARY'\")", True),
        ("(sqlite3.OperationalError) disk I/O error", False),
    ],
)
def test_a_data_set_that_another_job_makes_at_the_same_moment(tmp_cwd, uri, monkeypatch, said, there):
    from mlflow import MlflowClient

    asked, log_inputs = [], MlflowClient.log_inputs

    def racing(self, *arguments, **named):
        asked.append(named)
        if len(asked) == 1:
            raise RuntimeError(said)
        log_inputs(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_inputs", racing)
    summary = go(tmp_cwd / "run", f"tracking.uri={uri}", "train.steps=1")
    assert summary["mlflow_complete"] is there
    assert len(asked) == 1 + there
    if there:
        run_id = json.loads((tmp_cwd / "run" / "manifest.json").read_text())["mlflow_run_id"]
        assert client(uri).get_run(run_id).inputs.dataset_inputs


def test_resuming_continues_the_same_run_without_repeated_steps(tmp_cwd, uri):
    go(tmp_cwd / "run", f"tracking.uri={uri}", stop_after=1)
    first = json.loads((tmp_cwd / "run" / "manifest.json").read_text())["mlflow_run_id"]
    assert client(uri).get_run(first).info.status == "KILLED"
    go(tmp_cwd / "run", f"tracking.uri={uri}")
    assert json.loads((tmp_cwd / "run" / "manifest.json").read_text())["mlflow_run_id"] == first
    history = client(uri).get_metric_history(first, "reward/mean")
    assert sorted(m.step for m in history) == [1, 2, 3]
    assert client(uri).get_run(first).info.status == "FINISHED"


def test_a_server_that_is_not_there_costs_one_warning(tmp_cwd, caplog):
    summary = go(tmp_cwd / "run", "tracking.uri=http://127.0.0.1:9", "tracking.experiment=x")
    assert summary["state"] == "finished"
    assert summary["mlflow_complete"] is False
    assert caplog.text.count("MLflow at http://127.0.0.1:9 failed") == 1
    assert len((tmp_cwd / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_store_that_somebody_holds_locked(tmp_cwd, uri, monkeypatch, caplog):
    """As by a process that stands still in the middle of a write: one warning, and sync brings everything afterwards."""
    monkeypatch.setattr(mlflow_uri, "LOCKED_S", 0.2)
    run, holder = tmp_cwd / "run", sqlite3.connect(mlflow_uri.sqlite_file(uri), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    summary = go(run, f"tracking.uri={uri}")
    assert (summary["state"], summary["mlflow_complete"]) == ("finished", False)
    assert [r.getMessage() for r in caplog.records if "MLflow" in r.getMessage()] == [
        f"MLflow at {uri} failed ((sqlite3.OperationalError) database is locked); "
        "the run goes on and its folder records everything."
    ]
    assert client(uri).search_runs(["0", "1"]) == []
    holder.close()
    assert replay(run)
    (found,) = client(uri).search_runs(["1"])
    assert found.info.status == "FINISHED"
    assert [m.step for m in client(uri).get_metric_history(found.info.run_id, "reward/mean")] == [1, 2, 3]


def test_parallel_first_starts_do_not_race(tmp_cwd, new_uri):
    uri = new_uri
    failures: list[str] = []

    def start(i):
        tracker = MlflowTracker(uri, "e", str(tmp_cwd / "a"), None, f"k{i}", f"r{i}", {}, {"p": "1"}, failures.append)
        tracker.metrics(1, {"x": float(i)})
        assert tracker.close("FINISHED")
        return tracker.run_id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(start, range(8)))
    assert failures == []
    assert len(set(ids)) == 8
    assert {client(uri).get_run(i).data.metrics["x"] for i in ids} == {float(i) for i in range(8)}


@pytest.mark.parametrize("bad", ["redis://x", "sqlite:///", "file:///tmp/x", "outputs/mlflow.db", "", "sqlit:///x"])
def test_an_unknown_kind_of_uri_stops_at_once(bad):
    with pytest.raises(UserError, match=r"tracking\.uri: expected"):
        settings(f"tracking.uri='{bad}'")


def test_passwords_are_masked():
    assert without_password("http://me:secret@host:5000/x") == "http://***@host:5000/x"
    with pytest.raises(UserError) as caught:
        check_uri("ftp://me:secret@host/x")
    assert "secret" not in str(caught.value)


def test_sqlite_paths_become_absolute(tmp_cwd):
    assert absolute("sqlite:///a/b.db") == f"sqlite:///{tmp_cwd}/a/b.db"
    assert absolute("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert absolute("http://h:1") == "http://h:1"


def start_one(uri, artifacts, number):
    """What a job's process does with its tracker; its exit code."""
    said = []
    tracker = MlflowTracker(uri, "e", artifacts, None, f"k{number}", f"r{number}", {}, {"p": "1"}, said.append)
    tracker.metrics(1, {"x": float(number)})
    fine = tracker.close("FINISHED") and not said
    sys.stderr.write("".join(said))
    return int(not fine)


def test_eight_processes_may_start_at_once_on_a_file_that_is_not_there(tmp_cwd, new_uri):
    """Forks of this process, which has imported MLflow: they reach the file at the same moment."""
    import_what_runs_need()
    pids = []
    for i in range(8):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                forget_connections()
                code = start_one(new_uri, str(tmp_cwd / "a"), i)
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    runs = client(new_uri).search_runs(["1"])
    assert sorted(r.data.metrics["x"] for r in runs) == [float(i) for i in range(8)]
