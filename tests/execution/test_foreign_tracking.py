"""What a folder says about MLflow does not decide what is made, changed, sent or written on this machine."""

from __future__ import annotations

import json
import shutil
import sqlite3
from types import SimpleNamespace

import pytest

from rlrt.config.schema import Tracking
from rlrt.errors import UserError
from rlrt.execution import tracking
from rlrt.execution.execute import execute
from rlrt.execution.monitor import Monitor
from rlrt.execution.tracking import ARTIFACTS, inputs_of, replay, stored
from rlrt.records.files import read_json
from rlrt.records.folder import RunFolder
from rlrt.records.mlflow import MlflowTracker
from rlrt.records.mlflow_uri import is_store
from rlrt.records.stored_config import config_text, stored_config
from rlrt.sweep.parent import send_report
from tests.helpers import ONE_STEP, settings


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "gift"
    execute(settings("method=grpo", *ONE_STEP, "tracking=none"), folder, print, lambda: False, progress=False)
    return folder


@pytest.fixture
def gift(once, tmp_cwd, monkeypatch):
    (tmp_cwd / "here").mkdir()
    monkeypatch.chdir(tmp_cwd / "here")
    monkeypatch.setenv("HOME", str(tmp_cwd))
    shutil.copytree(once, tmp_cwd / "gift", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_cwd / "gift"


def says(gift, **values):
    plain = stored_config(gift)
    plain["tracking"] |= values
    (gift / "config.yaml").write_text(config_text(plain))


@pytest.mark.parametrize(
    "form",
    ["sqlite:///{}/made/new.db", "sqlite:///{}/other.db", "sqlite:///{}/empty.db", "sqlite+pysqlite:///{}/made/n.db"],
)
def test_no_store_is_made_where_a_folder_says(gift, tmp_cwd, form):
    """Another program's database, as a browser's, gets no tables of MLflow's."""
    with sqlite3.connect(tmp_cwd / "other.db") as other:
        other.execute("CREATE TABLE places (x)")
    (tmp_cwd / "empty.db").touch()
    before = (tmp_cwd / "other.db").read_bytes()
    says(gift, uri=form.format(tmp_cwd))
    with pytest.raises(UserError, match=r"no store of MLflow yet; .* --uri, or add --trust"):
        replay(gift)
    assert stored(gift, trust=True).tracking.uri == form.format(tmp_cwd)
    assert not (tmp_cwd / "made").exists()
    assert (tmp_cwd / "other.db").read_bytes() == before
    assert not is_store(tmp_cwd)


def test_a_report_sends_to_no_store_that_a_folder_names(gift, tmp_cwd, caplog):
    how = stored_config(gift)["tracking"] | {"uri": f"sqlite:///{tmp_cwd}/made/new.db"}
    for wrong in (how, {"uri": 5}, how | {"experiment": None}, {"uri": f"sqlite:///{tmp_cwd}/made/new.db"}, [1]):
        (tmp_cwd / "sweep.json").write_text(json.dumps({"mlflow_run_id": "a" * 32, "tracking": wrong}))
        send_report(tmp_cwd, [])
    assert not (tmp_cwd / "made").exists()
    assert "no store of MLflow yet" in caplog.text


@pytest.mark.parametrize(("name", "uri"), [("PGPASSWORD", "postgresql://h/d"), ("MYSQL_PWD", "mysql+pymysql://h/d")])
def test_no_password_of_a_database_goes_to_one_that_a_folder_names(gift, monkeypatch, name, uri):
    says(gift, uri=uri)
    monkeypatch.setenv(name, "secret")
    with pytest.raises(UserError, match=name):
        stored(gift)
    assert stored(gift, trust=True).tracking.uri == stored(gift, uri).tracking.uri == uri


def test_files_go_where_the_folder_does_not_say(gift, tmp_cwd):
    says(gift, artifacts=str(tmp_cwd / "made"))
    assert stored(gift).tracking.artifacts == ARTIFACTS == settings().tracking.artifacts
    assert stored(gift, trust=True).tracking.artifacts == str(tmp_cwd / "made")


def test_its_tags_are_rlrts_own(gift):
    tags = {
        "mlflow.user": "root",
        "mlflow.parentRunId": "x' OR",
        "rlrt.sweep": "a\x1bb",
        "mlflow.note.content": "<img>",
    }
    (gift / "job.json").write_text(json.dumps({"tags": tags, "choices": {"model": "\x1b"}}))
    assert stored(gift).tags == {"rlrt.sweep": "a\\x1bb"}
    (gift / "job.json").write_text(json.dumps({"tags": {"mlflow.parentRunId": "0f" * 16}}))
    assert stored(gift).tags == {"mlflow.parentRunId": "0f" * 16}


def test_nothing_that_it_names_is_opened_for_a_digest(gift, tmp_cwd, monkeypatch):
    plain = stored_config(gift)
    plain["model"]["path"] = "/"
    plain["eval"]["suites"] = {"a": {"path": "/dev/zero"}, "b": 5}
    (gift / "config.yaml").write_text(config_text(plain))
    monkeypatch.setattr(tracking, "content_hash", None)
    assert [one.source for one in inputs_of(stored(gift))] == ["/", "Countdown", "/dev/zero", "b"]


def test_a_run_of_yours_is_not_continued_by_its_id(gift, tmp_cwd, uri):
    from mlflow import MlflowClient

    says(gift, uri=uri)
    assert replay(gift)
    client = MlflowClient(uri)
    mine = read_json(gift / "manifest.json")["mlflow_run_id"]
    before = client.get_run(mine).to_dictionary()
    for key in ("0123456789abcdef", "' OR tags.`rlrt.key` != '"):
        shutil.copytree(gift, tmp_cwd / "theirs")
        papers = read_json(gift / "manifest.json") | {"key": key, "mlflow_run_id": mine, "identity": "theirs"}
        (tmp_cwd / "theirs" / "manifest.json").write_text(json.dumps(papers))
        assert replay(tmp_cwd / "theirs")
        assert read_json(tmp_cwd / "theirs" / "manifest.json")["mlflow_run_id"] != mine
        shutil.rmtree(tmp_cwd / "theirs")
    assert client.get_run(mine).to_dictionary() == before


@pytest.mark.parametrize("key", ["' OR ''='", "x" * 16, 5, None, ["a"], "0" * 15])
def test_a_key_is_sixteen_digits(gift, key):
    (gift / "manifest.json").write_text(json.dumps({"key": key}))
    made = RunFolder(gift).key()
    assert len(made) == 16
    assert int(made, 16) >= 0
    assert RunFolder(gift).key() == made


@pytest.mark.parametrize(
    ("where", "sent"), [("file:///home/you", 0), ("/home/you", 0), ("mlflow-artifacts:/1/2", 1), ("s3://b", 1)]
)
@pytest.mark.parametrize("foreign", [True, False])
def test_a_server_does_not_say_where_files_go_on_this_machine(monkeypatch, tmp_path, where, sent, foreign):
    import mlflow

    files, warnings = [], []
    info = SimpleNamespace(
        run_id="1", experiment_id="1", status="RUNNING", artifact_uri=where, lifecycle_stage="active"
    )
    run = SimpleNamespace(info=info, data=SimpleNamespace(tags={}, params={}, metrics={}), inputs=None)

    class Client:
        def __init__(self, tracking_uri):
            pass

        def __getattr__(self, name):
            values = {
                "search_runs": [],
                "get_run": run,
                "create_run": run,
                "get_experiment_by_name": SimpleNamespace(experiment_id=1, lifecycle_stage="active"),
            }
            return lambda *words, **more: files.append(words) if name == "log_artifact" else values.get(name)

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    made = MlflowTracker("http://127.0.0.1:9", "e", "a", None, "k", "n", {}, {}, warnings.append, foreign=foreign)
    made.artifact(tmp_path / "config.yaml")
    made.close("FINISHED")
    assert len(files) == (sent if foreign else 1)
    assert (len(warnings) == 1) == (foreign and not sent)
    assert not warnings or "folder of this machine" in warnings[0]


@pytest.mark.parametrize("kind", ["link", "pipe", "large"])
def test_a_link_to_a_file_of_yours_is_not_sent(gift, tmp_cwd, kind):
    import os

    sent = []
    tracker = SimpleNamespace(
        artifact=lambda path, *more: sent.append(path.name), tag=print, close=lambda *words: True, run_id=None
    )
    (tmp_cwd / "id_ed25519").write_text("secret")
    (gift / "manifest.json").unlink()
    if kind == "link":
        (gift / "manifest.json").symlink_to(tmp_cwd / "id_ed25519")
    elif kind == "pipe":
        os.mkfifo(gift / "manifest.json")
    else:
        with (gift / "manifest.json").open("wb") as file:
            file.truncate(10**9)
    how = Tracking(uri="x", trackio=None, experiment="e", artifacts="a", samples_every=0, samples=0, show_samples=0)
    Monitor(how, RunFolder(gift), tracker, lambda *words: None, print).close("FINISHED")
    assert sent == ["config.yaml", "summary.json"]
