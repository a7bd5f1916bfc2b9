from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from rlrt.errors import UserError
from rlrt.records import checkpoints
from rlrt.records.checkpoints import begin, commit, damage, drop_old, listed, newest_good
from rlrt.records.shards import Piece, write_bytes, write_pieces

SHARD = "trainer/shard-00001-of-00001.safetensors"


def write(folder, *steps, keep_last=0, best=None):
    for step in steps:
        work = begin(folder, step)
        digests = {
            "model.safetensors": write_bytes(work / "model.safetensors", [b"weights"]),
            SHARD: write_pieces(work / SHARD, [Piece("w", torch.arange(3.0) + step)]),
            "trainer/state.json": write_bytes(work / "trainer/state.json", [json.dumps({"step": step}).encode()]),
        }
        assert commit(work, digests, keep_last, best) == folder / f"step_{step}"


def test_only_the_newest_stay_and_the_best(tmp_path):
    write(tmp_path, 2, 10, 9, keep_last=2)
    assert [p.name for p in listed(tmp_path)] == ["step_9", "step_10"]
    write(tmp_path, 11, 12, keep_last=1, best=9)
    assert [p.name for p in listed(tmp_path)] == ["step_9", "step_12"]
    drop_old(tmp_path, 0, None)
    assert len(listed(tmp_path)) == 2


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda c: (c / "model.safetensors").write_bytes(b"weightz"), "model.safetensors is not what was written"),
        (lambda c: (c / SHARD).unlink(), f"{SHARD} is missing"),
        (lambda c: (c / "checksums.json").write_text("{"), "checksums.json cannot be read"),
        (lambda c: (c / "checksums.json").unlink(), "checksums.json is missing"),
        (lambda c: (c / "checksums.json").write_text("[]"), "checksums.json cannot be read"),
        (lambda c: (c / "checksums.json").write_text("{}"), "checksums.json is missing, or lists no files"),
        (lambda c: (c / "checksums.json").write_text("[" * 9000), "checksums.json cannot be read"),
        (lambda c: (c / "checksums.json").write_text('{"../step_1/model.safetensors": "0"}'), "which lies outside"),
        (lambda c: (c / "checksums.json").write_text('{"/etc/hostname": "0"}'), "which lies outside"),
        (lambda c: ((c / SHARD).unlink(), (c / SHARD).mkdir()), "expected a file, found a folder"),
        (lambda c: ((c / SHARD).unlink(), os.mkfifo(c / SHARD)), "expected a file, found a pipe"),
        (lambda c: ((c / SHARD).unlink(), (c / SHARD).symlink_to("/dev/zero")), "found a link"),
        (lambda c: (c / "trainer/state.json").write_bytes(b""), "trainer/state.json is not what was written"),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, harm, says):
    write(tmp_path, 1, 2)
    harm(tmp_path / "step_2")
    told: list[str] = []
    assert newest_good(listed(tmp_path), told.append) == tmp_path / "step_1"
    assert len(told) == 1
    assert says in told[0]
    assert "step_2" in told[0]
    shared = [damage(tmp_path / "step_2", part, 3) for part in range(3)]  # ranks share the look
    assert says in next(s for s in shared if s)
    assert [s for s in shared if s] in ([next(s for s in shared if s)] * n for n in (1, 3))


def test_an_unfinished_write_is_not_a_checkpoint(tmp_path):
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "step_1", tmp_path / "step_2.tmp")
    assert newest_good(listed(tmp_path), pytest.fail) == tmp_path / "step_1"
    write(tmp_path, 2)
    assert damage(tmp_path / "step_2") is None
    assert not (tmp_path / "step_2.tmp").exists()


def test_none_at_all(tmp_path):
    assert newest_good(listed(tmp_path / "nowhere"), pytest.fail) is None


def test_nothing_is_pickled(tmp_path):
    write(tmp_path, 1)
    assert {p.suffix for p in (tmp_path / "step_1").rglob("*") if p.is_file()} == {".json", ".safetensors"}
    assert "pickle" not in Path(checkpoints.__file__).read_text()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_rights_that_the_umask_gives_and_folders_keep_theirs(tmp_path, umask):
    """A folder without its x bit is closed to everybody but root."""
    before = os.umask(umask)
    try:
        write(tmp_path / "checkpoints", 1)
        (tmp_path / "folder").mkdir()
    finally:
        os.umask(before)
    inside = list((tmp_path / "checkpoints/step_1").rglob("*"))
    assert {p.name for p in inside} >= {"trainer", SHARD.split("/")[1], "model.safetensors", "checksums.json"}
    for path in inside:
        wanted = stat.S_IMODE((tmp_path / "folder").stat().st_mode) if path.is_dir() else 0o666 & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_what_lies_under_the_name_of_a_torn_checkpoint_goes_whatever_it_is(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write(folder, 1)
    (folder / "step_6.tmp").write_text("a file")
    (folder / "step_7.tmp").symlink_to(elsewhere)
    (folder / "step_8.tmp").mkdir()
    checkpoints.tidy(folder, folder / "step_1", 2)
    assert sorted(p.name for p in folder.iterdir()) == ["step_1"]
    assert elsewhere.is_dir()


def test_a_runs_folder_that_was_removed_is_not_made_again(tmp_path):
    with pytest.raises(FileNotFoundError):
        begin(tmp_path / "gone" / "checkpoints", 1)
    assert not (tmp_path / "gone").exists()


def test_what_is_no_folder_is_no_checkpoint_and_in_nobodys_way(tmp_path):
    """A file, a pipe, a link to itself or to a file; and a name whose digits are no number to Python."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write(folder, 1)
    (folder / "step_2").write_text("a file")
    os.mkfifo(folder / "step_3")
    (folder / "step_4").symlink_to("step_4")
    (folder / "step_5").symlink_to("step_2")
    (folder / "step_\u00b2").mkdir()
    (folder / "step_6").mkdir()
    (folder / "step_6.damaged").write_text("a file")
    assert [p.name for p in listed(folder)] == ["step_1", "step_6"]
    checkpoints.tidy(folder, folder / "step_1", 1)
    assert [p.name for p in listed(folder)] == ["step_1"]
    assert (folder / "step_6.damaged").is_dir()
    write(folder, 2, 3, 4, 5)
    assert [p.name for p in listed(folder)] == [f"step_{n}" for n in (1, 2, 3, 4, 5)]
    assert all(damage(folder / f"step_{n}") is None for n in (2, 3, 4, 5))
    for harm in (Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere")):
        harm(elsewhere := tmp_path / "elsewhere")
        with pytest.raises(UserError, match=f"{elsewhere} is no folder, and rlrt writes files into it; remove it"):
            begin(elsewhere, 1)
        elsewhere.unlink()
