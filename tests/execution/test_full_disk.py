"""A full disk ends the run with its last good checkpoint whole, one sentence, and a way on."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import pytest

import rlrt.records.shards
from rlrt.errors import DiskFull
from rlrt.execution.execute import execute
from rlrt.records.checkpoints import damage, listed
from rlrt.records.storage import is_full_disk
from tests.execution.test_resume import numbers
from tests.helpers import settings

SMALL = (
    "train.steps=8", "train.prompts_per_step=4", "train.save_every=2", "train.eval_every=0", "eval.prompts=8", "tracking=none",
    "train.keep_last=0",
)  # fmt: skip


def go(folder, *overrides):
    return execute(settings(*SMALL, *overrides), folder, lambda line: None, lambda: False, progress=False)


def check_end(folder, whole):
    """What is left after the error, and after some space was made."""
    good = listed(folder / "checkpoints")
    assert good
    assert all(damage(c) is None for c in good)
    assert not list((folder / "checkpoints").glob("*.tmp"))
    assert json.loads((folder / "summary.json").read_text())["state"] == "failed"
    saved = int(good[-1].name.removeprefix("step_"))
    return numbers(folder)[: saved + 1] == whole[: saved + 1]


@pytest.mark.parametrize("later", ["true", "false"])
def test_the_last_checkpoint_stays_and_the_run_goes_on(tmp_path, monkeypatch, later):
    go(tmp_path / "whole")
    whole, write = numbers(tmp_path / "whole"), rlrt.records.shards.write_all

    def full(file, part):
        if "step_6.tmp/trainer/shard" in file.name:
            write(file, part[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        write(file, part)

    monkeypatch.setattr(rlrt.records.shards, "write_all", full)
    with pytest.raises(DiskFull, match=r"the disk is full; the last checkpoint, .*step_4, is whole; free some space"):
        go(tmp_path / "run", f"train.save_async={later}")
    assert check_end(tmp_path / "run", whole)
    monkeypatch.undo()
    assert go(tmp_path / "run")["state"] == "finished"
    assert numbers(tmp_path / "run") == whole


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk, tmp_path):
    go(tmp_path / "whole")
    with pytest.raises(DiskFull, match="the disk is full; the last checkpoint"):
        go(small_disk / "run")
    assert check_end(small_disk / "run", numbers(tmp_path / "whole"))


def test_a_full_disk_by_any_of_its_names():
    assert is_full_disk(OSError(errno.EDQUOT, "quota"))
    assert is_full_disk(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full_disk(OSError(errno.EACCES, "no"))
