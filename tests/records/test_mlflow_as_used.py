"""MLflow as people use it: deleted runs, odd names, stores of other ages, servers with passwords, outages at a sweep's end."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlrt.records.claims import HELD, file_of
from rlrt.records.files import write_json
from rlrt.records.lease import hold_lease
from rlrt.records.mlflow import MlflowTracker, make_store
from rlrt.records.mlflow_words import LONGEST_NAME, accepted, reason
from rlrt.sweep import ending
from rlrt.sweep.command import sweep
from rlrt.sweep.launchers import LocalLauncher
from tests.forked import forked, submit_forks
from tests.records.test_mlflow import SMALL, client, go

OLD = "0c779009ac13"
"""A version of MLflow's tables of 2020."""


def tracked(uri, folder, warnings, **more):
    values = {"run_id": None, "key": "k", "name": "r", "tags": {}, "params": {}} | more
    return MlflowTracker(uri, "e", str(folder / "a"), warn=warnings.append, **values)


def run_of(folder):
    return json.loads((folder / "manifest.json").read_text())["mlflow_run_id"]


def test_a_run_that_was_deleted_is_restored_when_it_goes_on(tmp_cwd, uri, caplog):
    go(tmp_cwd / "run", f"tracking.uri={uri}", stop_after=1)
    client(uri).delete_run(run_of(tmp_cwd / "run"))
    assert go(tmp_cwd / "run", f"tracking.uri={uri}")["mlflow_complete"] is True
    found = client(uri).get_run(run_of(tmp_cwd / "run"))
    assert (found.info.lifecycle_stage, found.info.status) == ("active", "FINISHED")
    assert caplog.text.count("had been deleted in MLflow; it was restored") == 1


def test_a_deleted_run_whose_id_is_not_known_is_found_and_one_that_is_gone_is_made_anew(tmp_cwd, uri):
    warnings: list[str] = []
    first = tracked(uri, tmp_cwd, warnings)
    assert first.close("KILLED")
    client(uri).delete_run(first.run_id)
    second = tracked(uri, tmp_cwd, warnings)
    assert second.close("FINISHED")
    assert second.run_id == first.run_id
    third = tracked(uri, tmp_cwd, warnings, run_id="0" * 32, key="another")
    assert third.close("FINISHED")
    assert third.run_id not in (first.run_id, "0" * 32)


def test_a_deleted_experiment_is_restored_and_one_deleted_while_it_runs_costs_a_warning(tmp_cwd, uri):
    warnings: list[str] = []
    first = tracked(uri, tmp_cwd, warnings)
    assert first.close("KILLED")
    number = client(uri).get_experiment_by_name("e").experiment_id
    client(uri).delete_experiment(number)
    second = tracked(uri, tmp_cwd, warnings, run_id=first.run_id)
    assert second.wait_for_run(60) == first.run_id
    client(uri).delete_run(first.run_id)
    second.metrics(1, {"x": 1.0})
    assert not second.close("FINISHED")
    assert ["restored" in w or "the run goes on" in w for w in warnings] == [True, True]


def take_over(lease):
    """What another process does that saw no sign of life of this one."""
    note = {"nonce": "another", "beat": 0, "pid": 1, "host": "h"}
    write_json(file_of(lease, HELD[lease].number + 1), note)


@pytest.mark.parametrize("late", [False, True])
def test_a_run_whose_folder_was_taken_over_is_not_touched(late, tmp_cwd, uri):
    """Before the thread has reached MLflow, which takes seconds, and once it has."""
    warnings: list[str] = []
    first = tracked(uri, tmp_cwd, warnings)
    assert first.close("FINISHED")
    lease = tmp_cwd / "run" / "lease"
    with hold_lease(lease):
        if not late:
            take_over(lease)
        second = tracked(uri, tmp_cwd, warnings, run_id=first.run_id, lease=lease)
        if late:
            second.wait_for_run(60)
            take_over(lease)
        second.metrics(1, {"x": 1.0})
        assert not second.close("FAILED")
    run = client(uri).get_run(first.run_id)
    assert (run.info.status, run.data.metrics, warnings) == ("RUNNING" if late else "FINISHED", {}, [])


NAMES = [
    "held@8 (v2)", "a/b", "a//b", "../x", "日本語", "it's \"q\"", "x" * 300, "x" * 299 + "y", "a b:c", "tab\tx", ".", "",
    "n\nl", "a/", "/a", "50%", "é" * 251,
]  # fmt: skip


def test_names_that_mlflow_refuses_reach_it_all_the_same(tmp_cwd, uri):
    warnings: list[str] = []
    tracker = tracked(uri, tmp_cwd, warnings, params={f"eval.suites.{n}.path": "p" for n in NAMES})
    values = {f"eval/{name}/greedy": float(i) for i, name in enumerate(NAMES)}
    tracker.metrics(1, values)
    tracker.late_metrics(1, values)  # and not twice
    assert tracker.close("FINISHED"), warnings
    found = client(uri).get_run(tracker.run_id).data
    assert sorted(found.metrics.values()) == sorted(values.values())
    assert found.metrics["eval/日本語/greedy"] == 4.0
    assert len(found.params) == len(NAMES)
    assert len(client(uri).get_metric_history(tracker.run_id, accepted("eval/50%/greedy"))) == 1
    (said,) = warnings
    assert "does not accept the name 'eval/held@8 (v2)/greedy'; there it is 'eval/held_8 _v2_/greedy-" in said


def test_accepted_names():
    assert accepted("eval/aime24/pass_at_8") == "eval/aime24/pass_at_8"
    assert len({accepted(n) for n in NAMES}) == len(NAMES)
    assert max(len(accepted(n)) for n in NAMES) == LONGEST_NAME


def changed(uri, statement):
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store, store:
        store.executescript(statement)


OTHERS = [
    (
        f"update alembic_version set version_num='{OLD}'",
        "make a backup of it, then run: mlflow db upgrade 'sqlite:////",
    ),
    ("update alembic_version set version_num='ffffffffffff'", "made by a newer MLflow"),
    ("delete from alembic_version", "its tables have no version: their creation was cut"),
    ("drop table metrics; create table metrics (key text)", "the store is damaged, or an upgrade of it was cut"),
]


@pytest.mark.parametrize(("statement", "words"), OTHERS, ids=["old", "new", "unnamed", "cut"])
def test_a_store_of_another_age_is_one_sentence_with_the_whole_command(tmp_cwd, uri, capfd, statement, words):
    changed(uri, statement)
    warnings: list[str] = []
    tracker = tracked(uri, tmp_cwd, warnings)
    tracker.metrics(1, {"x": 1.0})
    assert not tracker.close("FINISHED")
    (said,) = warnings
    assert words in said
    assert said.endswith("; the run goes on and its folder records everything.")
    if OLD in statement:
        assert f"'{uri}'" in said
    assert "Traceback" not in capfd.readouterr().err


def test_the_command_for_a_server_of_ones_own_shows_no_password():
    text = f"Detected out-of-date database schema (found version {OLD}, but expected x). Take a backup"
    said = reason(Exception(text), "mysql+pymysql://me:hunter2@db/x")
    assert said.endswith("mlflow db upgrade 'mysql+pymysql://***@db/x'")


def test_a_store_whose_making_is_killed_is_none(tmp_cwd, new_uri, monkeypatch):
    file = tmp_cwd / "new.db"
    (tmp_cwd / "new.db.7.tmp").write_bytes(b"torn by another")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mlflow.store.db.utils._initialize_tables", killed)
        with pytest.raises(KeyboardInterrupt):
            make_store(file)
    assert list(tmp_cwd.glob("new.db*")) == []
    warnings: list[str] = []
    assert tracked(new_uri, tmp_cwd, warnings).close("FINISHED"), warnings
    assert file.is_file()


class Guarded(ThreadingHTTPServer):
    """A server with passwords in front of what MLflow's client asks of a store, as far as a tracker needs it."""

    def __init__(self, store):
        super().__init__(("127.0.0.1", 0), Door)
        self.store, self.refused, self.words = store, 0, {"message": "You are not authenticated."}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Door(BaseHTTPRequestHandler):
    ALLOWED = ("Basic " + base64.b64encode(b"me:p@ss/word").decode(), "Bearer token-of-mine")
    server: Guarded

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") not in self.ALLOWED:
            self.server.refused += 1
            return self.send(401, self.server.words)
        call = self.path.split("?")[0].rpartition("/2.0/mlflow/")[2]
        self.server.store.append((call, json.loads(body or b"{}")))
        run = {"info": {"run_id": "r" * 32, "run_uuid": "r" * 32, "experiment_id": "1", "status": "RUNNING",
                        "lifecycle_stage": "active", "artifact_uri": "file:///nowhere"}, "data": {}}  # fmt: skip
        answers = {
            "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "e", "lifecycle_stage": "active"}},
            "runs/search": {},
            "runs/create": {"run": run},
            "runs/get": {"run": run},
        }
        return self.send(200, answers.get(call, {}))

    do_GET = do_POST = do_PATCH = answer

    def send(self, code, value):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Nothing: it is a test's."""


@pytest.fixture
def guarded(monkeypatch):
    for name in [n for n in os.environ if n.startswith("MLFLOW_TRACKING")]:
        monkeypatch.delenv(name)
    server = Guarded([])
    yield server
    server.shutdown()
    server.server_close()


PASSWORD = "p@ss/word"
RIGHT = {
    "variables": ("", {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": PASSWORD}),
    "token": ("", {"MLFLOW_TRACKING_TOKEN": "token-of-mine"}),
    "uri": ("me:p%40ss%2Fword@", {}),
}
WRONG = {
    "nothing": ("", {}),
    "variables": ("", {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "wrong-planted"}),
    "token": ("", {"MLFLOW_TRACKING_TOKEN": "wrong-planted"}),
    "uri": ("me:wrong-planted@", {}),
}


@pytest.mark.parametrize("how", RIGHT)
def test_a_server_with_the_right_password_gets_everything(tmp_cwd, guarded, monkeypatch, how):
    user, variables = RIGHT[how]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    warnings: list[str] = []
    tracker = tracked(f"http://{user}127.0.0.1:{guarded.server_port}", tmp_cwd, warnings)
    tracker.metrics(1, {"x": 2.0})
    assert tracker.close("FINISHED"), warnings
    calls = dict(guarded.store)
    assert calls["runs/log-batch"]["metrics"][0]["key"] == "x"
    assert calls["runs/update"]["status"] == "FINISHED"
    assert guarded.refused == 0


@pytest.mark.parametrize("how", WRONG)
def test_a_server_that_refuses_the_password_costs_one_warning(tmp_cwd, guarded, monkeypatch, caplog, how):
    user, variables = WRONG[how]
    guarded.words = guarded.words if how == "token" else "<html>go away</html>"  # a proxy in front of it speaks no JSON
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    summary = go(tmp_cwd / "run", f"tracking.uri='http://{user}127.0.0.1:{guarded.server_port}'", "train.steps=1")
    assert (summary["state"], summary["mlflow_complete"]) == ("finished", False)
    assert caplog.text.count("the server refused the user, the password or the token") == 1
    assert "MLFLOW_TRACKING_PASSWORD" in caplog.text
    assert guarded.refused == 1
    assert len((tmp_cwd / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not [p for p in (tmp_cwd / "run").rglob("*") if p.is_file() and b"wrong-planted" in p.read_bytes()]


def note_of(folder):
    return json.loads((folder / "sweep.json").read_text())


@pytest.fixture
def forks(monkeypatch):
    monkeypatch.setattr(LocalLauncher, "submit", submit_forks)


@pytest.mark.parametrize("away", ["always", "in the middle", "the driver is killed"])
def test_the_sweeps_own_run_ends_after_an_outage(tmp_cwd, uri, forks, monkeypatch, away):
    """The store is away from the begin, or from the middle on, or nobody ends the run; ``rlrt.sync`` does."""
    typed = ["method=grpo", "seed=0", *SMALL, f"hydra.sweep.dir={tmp_cwd}/s"]
    if away == "always":
        assert sweep([*typed, "tracking.uri=http://127.0.0.1:9"]) == 0
    else:
        close = MlflowTracker.close if away == "the driver is killed" else None

        def no_end(self, status, seconds=60.0):
            if "rlrt.kind" in self._tags and status != "RUNNING":  # the sweep's own
                self._client.set_terminated = lambda *a, **k: (_ for _ in ()).throw(ConnectionError("away"))
            return whole(self, status, seconds)

        whole = MlflowTracker.close
        with monkeypatch.context() as patched:
            if close is None:
                patched.setattr(MlflowTracker, "close", no_end)
            else:
                patched.setattr(ending, "end_parent", lambda *a: None)
            assert sweep([*typed, f"tracking.uri={uri}"]) == 0
        assert client(uri).get_run(note_of(tmp_cwd / "s")["mlflow_run_id"]).info.status == "RUNNING"
    assert note_of(tmp_cwd / "s").get("mlflow_complete") is not True
    done = forked("sync", [str(tmp_cwd), "--uri", uri], tmp_cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    found = client(uri).get_run(note_of(tmp_cwd / "s")["mlflow_run_id"])
    assert found.info.status == "FINISHED"
    assert note_of(tmp_cwd / "s")["mlflow_complete"] is True
    assert "report" in {f.path for f in client(uri).list_artifacts(found.info.run_id)}
    assert len(client(uri).search_runs(["1"])) == 2  # the sweep's and its job's
    assert "0 of 0 runs" in forked("sync", [str(tmp_cwd), "--uri", uri], tmp_cwd).stdout
