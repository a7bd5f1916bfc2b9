"""Views in an experiment's tags: written once, brought up to date, the oldest of ours goes, nobody else's is touched."""

from __future__ import annotations

import base64
import json
import random
import zlib

import pytest

from rlrt.records import mlflow_views
from rlrt.records.mlflow import MlflowTracker
from rlrt.records.mlflow_views import LONGEST, MOST, PREFIX, compact, newest, read, write
from tests.records.test_mlflow import client

KEY = "rlrt-0123456789abcdef"


@pytest.fixture
def store(uri):
    made = client(uri)
    return made, made.create_experiment("mine")


def tags_of(store):
    return {k: v for k, v in store[0].get_experiment(store[1]).tags.items() if k.startswith(PREFIX)}


def as_mlflow_reads(text):
    """The two forms of a state, as mlflow/demo/generators/saved_views.py writes them."""
    if text.startswith("deflate;"):
        return json.loads(zlib.decompress(base64.b64decode(text.removeprefix("deflate;"))))
    return json.loads(text)


def said(store, view, name, state):
    warnings = []
    write(*store, view, name, state, warnings.append)
    return warnings


def test_a_view_is_written_once_and_brought_up_to_date(store):
    assert said(store, KEY, "first", {"groupBy": None}) == []
    (value,) = tags_of(store).values()
    stored = json.loads(value)
    assert set(stored) == {"name", "createdAt", "updatedAt", "state", "rlrt"}
    assert stored["name"] == "first"
    assert as_mlflow_reads(stored["state"]) == {"groupBy": None}
    said(store, KEY, "first", {"groupBy": None})
    assert list(tags_of(store).values()) == [value]  # not even its date is another
    said(store, KEY, "first", {"groupBy": "x"})
    (again,) = tags_of(store).values()
    assert as_mlflow_reads(json.loads(again)["state"]) == {"groupBy": "x"}
    assert json.loads(again)["createdAt"] == stored["createdAt"]
    assert json.loads(again)["updatedAt"] >= stored["updatedAt"]


def test_a_view_that_somebody_saved_anew_stays(store):
    said(store, KEY, "first", {"groupBy": None})
    mine = json.dumps({"name": "first", "createdAt": 1, "updatedAt": 2, "state": '{"groupBy":"mine"}'})
    store[0].set_experiment_tag(store[1], PREFIX + KEY, mine)
    assert said(store, KEY, "first", {"groupBy": "ours"}) == []
    assert list(tags_of(store).values()) == [mine]


def test_a_large_state_is_compressed_and_one_that_never_fits_is_left_out(store):
    state = {"groupBy": "x" * 30_000}
    assert said(store, KEY, "large", state) == []
    (value,) = tags_of(store).values()
    assert len(value) < 1000
    assert json.loads(value)["state"].startswith("deflate;")
    assert as_mlflow_reads(json.loads(value)["state"]) == state
    noise = {"groupBy": random.Random(0).randbytes(20_000).hex()}
    (warning,) = said(store, "rlrt-" + "f" * 16, "noise", noise)
    assert f"MLflow takes {LONGEST}" in warning
    assert len(tags_of(store)) == 1
    small = {"searchFilter": "y" * 100}
    assert json.loads(compact(small)) == small


def test_the_oldest_of_ours_goes_and_none_of_the_users(store, monkeypatch):
    users = {f"{PREFIX}user{n}": json.dumps({"name": f"u{n}", "createdAt": n, "state": "{}"}) for n in range(MOST - 2)}
    plain = {f"{PREFIX}shared": "deflate;old form, which MLflow does not count"}
    for tag, value in (users | plain).items():
        store[0].set_experiment_tag(store[1], tag, value)
    clock = iter(range(1000, 2000))
    monkeypatch.setattr(mlflow_views.time, "time", lambda: float(next(clock)))
    ids = [f"rlrt-{n:016x}" for n in range(4)]
    for view in ids:
        assert said(store, view, view, {"groupBy": view}) == []
    left = tags_of(store)
    assert set(users | plain) < set(left)
    assert {tag.removeprefix(PREFIX) for tag in set(left) - set(users | plain)} == set(ids[2:])
    assert newest(left) == (ids[3], ids[3])
    for view in ids[2:]:  # the user fills the experiment
        store[0].delete_experiment_tag(store[1], PREFIX + view)
    for n in range(2):
        store[0].set_experiment_tag(store[1], f"{PREFIX}more{n}", json.dumps({"name": "m", "createdAt": n}))
    (warning,) = said(store, KEY, "late", {"groupBy": None})
    assert f"{MOST} views of yours" in warning
    assert newest(tags_of(store)) is None


@pytest.mark.parametrize(
    "value", ["", "[]", "{}", '{"name": 3, "createdAt": 1}', '{"name": "x", "createdAt": true}', "[" * 9999]
)
def test_a_damaged_tag_is_no_view(value):
    assert read(value) is None


def test_a_name_is_one_line(store):
    said(store, KEY, "a\x1b[31m\nb" + "c" * 400, {"groupBy": None})
    view, name = newest(tags_of(store))
    assert view == KEY
    assert name.isprintable()
    assert len(name) <= 200


@pytest.mark.parametrize(("code", "goes_on"), [("INVALID_PARAMETER_VALUE", True), ("INTERNAL_ERROR", False)])
def test_a_server_that_takes_no_view_gets_the_rest(uri, monkeypatch, code, goes_on):
    """Older servers take 5,000 characters, others give no right to an experiment; one that is away fails as it always did."""
    import mlflow
    from mlflow.exceptions import MlflowException

    def refuse(*_):
        error = MlflowException("no such tag here")
        error.error_code = code
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, "set_experiment_tag", refuse)
    warnings = []
    tracker = MlflowTracker(uri, "mine", "art", None, "0123456789abcdef", "sweep", {}, {}, warnings.append)
    tracker.view("sweep", {"groupBy": None})
    tracker.tag("later", "there")
    assert tracker.close("FINISHED") is goes_on
    assert len(warnings) == 1
    assert ("takes no view of sweep (no such tag here)" in warnings[0]) is goes_on
    run = client(uri).get_run(tracker.run_id)
    assert ("later" in run.data.tags) is goes_on
    assert run.info.status == ("FINISHED" if goes_on else "RUNNING")
