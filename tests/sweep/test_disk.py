from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple

import pytest

from rlrt.errors import UserError
from rlrt.paths import EMBEDDED
from rlrt.records.files import write_json
from rlrt.sweep.command import still_to_write
from rlrt.sweep.disk import check_disk, checkpoint_bytes, parameters
from rlrt.sweep.plan import Job

Usage = namedtuple("Usage", "total used free")


def job(folder, path="embedded", **more):
    train = {"steps": 100, "save_every": 10, "keep_last": 2, "save_dtype": "float32"} | {
        k: v for k, v in more.items() if k not in ("weights", "lora")
    }
    plain = {
        "model": {"path": path, "lora": more.get("lora")},
        "train": train,
        "teacher": {"weights": more.get("weights", "old")},
    }
    return Job(folder / "job", (), plain, {}, "x")


def test_the_embedded_models_size_is_read_from_its_headers():
    assert parameters(EMBEDDED) == 155_264


@pytest.mark.parametrize(
    ("more", "kept", "copies"),
    [
        ({}, 3, 3),  # two kept, one being written; weights and two moments
        ({"weights": "ema"}, 3, 4),
        ({"keep_last": 0}, 10, 3),
        ({"save_every": 0}, 1, 3),
        ({"keep_last": 50}, 10, 3),
        ({"save_dtype": "bfloat16"}, 3, 3.5),  # half as much to serve, and the trainer's weights beside
        ({"save_dtype": "bfloat16", "lora": 4}, 3, 0.5),
        ({"lora": 4}, 3, 1),
    ],
)
def test_what_a_jobs_checkpoints_take(tmp_path, more, kept, copies):
    assert checkpoint_bytes(job(tmp_path, **more)) == 155_264 * 4 * kept * copies


def test_a_sweep_that_does_not_fit_is_refused_and_one_that_is_half_written_goes_on(tmp_path, monkeypatch):
    one = checkpoint_bytes(job(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, int(2.5 * one)))
    said = []
    check_disk(tmp_path / "sweep", [job(tmp_path / str(i)) for i in range(2)], said.append)
    three = [job(tmp_path / str(i)) for i in range(3)]
    with pytest.raises(
        UserError, match=r"hydra\.sweep\.dir: the checkpoints of 3 jobs need about .* lower train\.keep_last"
    ):
        check_disk(tmp_path / "sweep", three, said.append)
    held = three[0].folder / "checkpoints" / "step_10"
    held.mkdir(parents=True)
    (held / "model.safetensors").write_bytes(bytes(one))
    check_disk(tmp_path / "sweep", three, said.append)  # the same command again must be able to go on
    assert said == []


def test_a_model_that_is_not_here_is_said_to_be_unknown(tmp_path):
    said = []
    check_disk(tmp_path, [job(tmp_path, "Qwen/Qwen3-1.7B")], said.append)
    assert "Qwen/Qwen3-1.7B is not on this machine" in said[0]


def test_a_search_that_goes_on_needs_room_for_what_is_to_come_alone(tmp_path):
    one = job(tmp_path)
    for name, summary in (("a", {"state": "finished"}), ("b", {"state": "interrupted"})):
        dataclasses.replace(one, folder=tmp_path / "sweep" / name).write()
        write_json(tmp_path / "sweep" / name / "summary.json", summary)
    left = still_to_write(tmp_path / "sweep", one, 5)
    assert [j.folder.name for j in left] == ["b", "job", "job", "job"]
    assert still_to_write(tmp_path / "nothing", one, 5) == [one] * 5
