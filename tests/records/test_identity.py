"""What makes two runs the same run, and names of folders."""

from __future__ import annotations

import os

import pytest

from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.records.files import files_below
from rlrt.records.identity import content_hash, counted, identity, is_neutral
from rlrt.records.names import readable, sweep_hash
from tests.helpers import settings


def test_identity_follows_what_is_computed():
    base = identity_of()
    assert base == identity_of()
    assert base == identity_of("tracking=none", "train.save_every=7", "train.keep_last=0", "resume=never", "threads=1")
    for other in ("seed=1", "train.lr=0.5", "method=grpo", "data.highest=14", "train.steps=3"):
        assert identity_of(other) != base, other


def test_a_key_is_neutral_exactly_where_the_identity_ignores_it():
    plain = settings("engine=vllm_server", "engine.url=http://127.0.0.1:1").plain
    keys = leaves(plain, keep_empty=True)
    assert {key for key in keys if not is_neutral(key)} == set(leaves(counted(plain), keep_empty=True))
    assert {"train.save_every", "tracking.uri", "engine.url", "threads"} <= {key for key in keys if is_neutral(key)}


def test_identity_takes_models_and_data_by_content(tmp_path):
    import shutil

    from rlrt.paths import EMBEDDED

    for name in ("a", "b"):
        shutil.copytree(EMBEDDED, tmp_path / name)
    one = identity_of(f"model.path={tmp_path}/a")
    assert one == identity_of(f"model.path={tmp_path}/b") == identity_of()
    (tmp_path / "b" / "config.json").write_text("{}")
    assert identity_of(f"model.path={tmp_path}/b") != one
    data = tmp_path / "d.jsonl"
    data.write_text("1")
    first = identity_of("data=file", f"data.path={data}")
    data.write_text("22")
    assert identity_of("data=file", f"data.path={data}") != first


def test_identity_takes_the_code(monkeypatch):
    import rlrt.records.identity

    base = identity_of()
    monkeypatch.setattr(rlrt.records.identity, "code_hash", lambda: "other")
    assert identity_of() != base


def test_readable_names():
    assert (
        readable(["method=rlrt", "seed=1", "hydra.run.dir=x", "tracking=none", "+x.y=1"], "d")
        == "method=rlrt,seed=1,x.y=1"
    )
    assert readable([], "default") == "default"
    assert "/" not in readable(["model.path=/a b/../c"], "d")
    assert len(readable([f"k{i}=1" for i in range(100)], "d")) <= 80
    assert sweep_hash(["b=1", "a=2"]) == sweep_hash(["a=2", "b=1", "hydra.verbose=true"])


def test_evaluation_problems_are_part_of_the_identity_by_their_content(tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "1+1?", "answer": 2}\n')
    more = [f"data.path={data}", "data=file"]
    for name, text in (("h1", "x"), ("h2", "x"), ("h3", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "held.jsonl").write_text(text)
    paths = [f"data.heldout_path={tmp_path / name / 'held.jsonl'}" for name in ("h1", "h2", "h3")]
    one, same, other = (identity_of(*more, path) for path in paths)
    assert one == same
    assert one != other


def identity_of(*overrides):
    return identity(settings(*overrides).plain)


def test_a_whole_disk_is_not_read_for_an_identity(tmp_path, monkeypatch):
    """Nor what has no content of its own, nor what may not be read; a name that is no UTF-8 counts as its bytes."""
    (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_text("{}")
    before = content_hash(tmp_path)
    assert len(before) == 64
    (tmp_path / "b").write_text("1234")
    monkeypatch.setattr(files_below, "__defaults__", (1,))
    with pytest.raises(UserError, match=f"data.path: {tmp_path} cannot be read: expected at most 1 files and folders"):
        identity({"data": {"path": str(tmp_path)}})
    monkeypatch.undo()
    monkeypatch.setattr("rlrt.records.identity.MOST_BYTES", 5)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: expected at most 5 bytes, found 6 bytes"):
        content_hash(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        UserError, match=r"data.path: .*pipe cannot be read: expected a file or a folder, found neither"
    ):
        identity({"data": {"path": str(tmp_path / "pipe")}})
