from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from rlrt.records import checkpoints
from rlrt.records.checkpoints import Snapshot, damage, listed, newest_good, read, save


def snapshot(step):
    p = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([p], lr=0.1)
    p.grad = torch.ones(3)
    optimiser.step()
    return Snapshot(step, optimiser.state_dict(), {"w": torch.arange(3.0)}, None, {"method": {"a": {"coef": 0.25}}})


def model(folder):
    (folder / "model.safetensors").write_bytes(b"weights")


def write(folder, *steps, keep_last=0):
    for step in steps:
        save(folder, snapshot(step), model, keep_last)


def test_what_is_read_is_what_was_written(tmp_path):
    write(tmp_path, 5)
    back, original = read(tmp_path / "step_5"), snapshot(5)
    assert back.step == 5
    assert back.state == original.state
    assert back.teacher is not None
    assert torch.equal(back.teacher["w"], torch.arange(3.0))
    p = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([p], lr=0.1)
    optimiser.load_state_dict(back.optimiser)
    for name, value in original.optimiser["state"][0].items():
        assert torch.equal(optimiser.state_dict()["state"][0][name], value)
    assert optimiser.state_dict()["param_groups"] == original.optimiser["param_groups"]


def test_only_the_newest_stay(tmp_path):
    write(tmp_path, 2, 10, 9, keep_last=2)
    assert [p.name for p in listed(tmp_path)] == ["step_9", "step_10"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda c: (c / "model.safetensors").write_bytes(b"weightz"), "model.safetensors is not what was written"),
        (lambda c: (c / "trainer/optimiser.safetensors").unlink(), "trainer/optimiser.safetensors is missing"),
        (lambda c: (c / "checksums.json").write_text("{"), "checksums.json cannot be read"),
        (lambda c: (c / "checksums.json").unlink(), "checksums.json cannot be read"),
        (lambda c: (c / "trainer/state.json").write_bytes(b""), "trainer/state.json is not what was written"),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, harm, says):
    write(tmp_path, 1, 2)
    harm(tmp_path / "step_2")
    told: list[str] = []
    assert newest_good(tmp_path, told.append) == tmp_path / "step_1"
    assert len(told) == 1
    assert says in told[0]
    assert "step_2" in told[0]


def test_an_unfinished_write_is_not_a_checkpoint(tmp_path):
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "step_1", tmp_path / "step_2.tmp")
    assert newest_good(tmp_path, pytest.fail) == tmp_path / "step_1"
    write(tmp_path, 2)
    assert damage(tmp_path / "step_2") is None
    assert not (tmp_path / "step_2.tmp").exists()


def test_a_write_that_fails_leaves_the_earlier_one(tmp_path):
    write(tmp_path, 1)

    def full_disk(folder):
        (folder / "model.safetensors").write_bytes(b"wei")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save(tmp_path, snapshot(2), full_disk, keep_last=1)
    assert newest_good(tmp_path, pytest.fail) == tmp_path / "step_1"


def test_none_at_all(tmp_path):
    assert newest_good(tmp_path / "nowhere", pytest.fail) is None


def test_nothing_is_pickled(tmp_path):
    write(tmp_path, 1)
    assert {p.suffix for p in (tmp_path / "step_1").rglob("*") if p.is_file()} == {".json", ".safetensors"}
    json.loads((tmp_path / "step_1" / "trainer" / "state.json").read_text())
    assert "pickle" not in Path(checkpoints.__file__).read_text()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_rights_that_the_umask_gives_and_folders_keep_theirs(tmp_path, umask):
    """safetensors writes for the owner alone; a folder without its x bit is closed to everybody but root."""
    before = os.umask(umask)
    try:
        write(tmp_path / "checkpoints", 1)
        (tmp_path / "folder").mkdir()
    finally:
        os.umask(before)
    inside = list((tmp_path / "checkpoints/step_1").rglob("*"))
    assert {p.name for p in inside} >= {"trainer", "optimiser.safetensors", "model.safetensors", "checksums.json"}
    for path in inside:
        wanted = stat.S_IMODE((tmp_path / "folder").stat().st_mode) if path.is_dir() else 0o666 & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
