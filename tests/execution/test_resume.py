"""A run that was cut and went on ends as one that was not, to the bit."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import rlrt.training.update
from rlrt.errors import Interrupted, UserError
from rlrt.execution.execute import execute
from tests.helpers import METHODS, settings

SHARD = "trainer/shard-00001-of-00001.safetensors"
SMALL = ("train.steps=4", "train.prompts_per_step=2", "train.eval_every=2", "eval.prompts=4", "tracking=none")


def run(folder, *overrides, stop_after=None):
    """Run in a folder; ``stop_after`` steps a stop is asked for, as by a signal."""
    asked = iter(range(1, 1000))
    stop = (lambda: next(asked) >= stop_after) if stop_after else (lambda: False)
    return execute(settings(*SMALL, *overrides), folder, lambda line: None, stop)


def numbers(folder):
    """The record without wall-clock figures."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def same_end(a, b):
    assert numbers(a) == numbers(b)
    for name in ("model.safetensors", SHARD):
        left, right = (load_file(f / "checkpoints" / "step_4" / name) for f in (a, b))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left), name


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed(tmp_path, method):
    more = [f"method={method}", "train.minibatches=2"] + (["teacher.weights=ema"] if method == "sd" else [])
    assert run(tmp_path / "whole", *more)["state"] == "finished"
    summary = run(tmp_path / "cut", *more, stop_after=2)
    assert (summary["state"], summary["step"]) == ("interrupted", 2)
    assert run(tmp_path / "cut", *more)["state"] == "finished"
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_step_that_was_cut_after_its_credit_is_credited_once(tmp_path, monkeypatch):
    """As where the clock says within step 2 that its end comes too late: AntiSD's gate has read that step's teacher already."""
    more, updated, asked = ["method=antisd", "method.antisd_warm_steps=2"], rlrt.training.update.minibatch_step, []

    def cut(*given, **named):
        asked.append(1)
        if len(asked) == 2:
            raise Interrupted
        return updated(*given, **named)

    def gate(name):
        return json.loads((tmp_path / name / "checkpoints" / "step_4" / "trainer" / "state.json").read_text())["method"]

    run(tmp_path / "whole", *more)
    with monkeypatch.context() as patch:
        patch.setattr(rlrt.training.update, "minibatch_step", cut)
        assert run(tmp_path / "cut", *more)["step"] == 1
    assert run(tmp_path / "cut", *more)["state"] == "finished"
    same_end(tmp_path / "whole", tmp_path / "cut")
    assert gate("cut") == gate("whole")
    assert sorted(gate("whole")["credit"]) == ["open", "warm_1", "warm_2"]


@pytest.mark.parametrize("teacher", ["snapshot", "ema", "frozen"])
def test_teacher_weights_survive(tmp_path, teacher):
    more = ["method=rlrt", f"teacher.weights={teacher}", "teacher.sync_steps=3"]
    run(tmp_path / "whole", *more)
    run(tmp_path / "cut", *more, stop_after=2)
    run(tmp_path / "cut", *more)
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_an_adaptive_coefficient_survives(tmp_path):
    more = ["method=entropy", "method.entropy_target=2.0", "method.entropy_rate=0.01"]
    run(tmp_path / "whole", *more)
    run(tmp_path / "cut", *more, stop_after=2)
    run(tmp_path / "cut", *more)
    same_end(tmp_path / "whole", tmp_path / "cut")
    assert (
        numbers(tmp_path / "whole")[4]["policy/entropybonus"] != numbers(tmp_path / "whole")[1]["policy/entropybonus"]
    )


def test_what_was_written_after_the_checkpoint_is_cut(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "cut", stop_after=2)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward/mean": 0.0}\n{"step": 4, "rew')
    run(tmp_path / "cut")
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_damaged_checkpoint_costs_its_steps_only(tmp_path, caplog):
    run(tmp_path / "whole", "train.save_every=1")
    run(tmp_path / "cut", "train.save_every=1", stop_after=3)
    (tmp_path / "cut" / "checkpoints" / "step_3" / "model.safetensors").write_bytes(b"torn")
    run(tmp_path / "cut", "train.save_every=1")
    assert "step_3 is damaged" in caplog.text
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_finished_is_not_run_again_unless_asked(tmp_path):
    run(tmp_path / "a")
    before = (tmp_path / "a" / "metrics.jsonl").stat().st_mtime_ns
    assert run(tmp_path / "a")["state"] == "finished"
    assert (tmp_path / "a" / "metrics.jsonl").stat().st_mtime_ns == before
    run(tmp_path / "a", "resume=never")
    assert (tmp_path / "a.old-1" / "metrics.jsonl").is_file()
    assert numbers(tmp_path / "a") == numbers(tmp_path / "a.old-1")


def test_resume_must(tmp_path):
    with pytest.raises(UserError, match="resume=must"):
        run(tmp_path / "a", "resume=must")
    run(tmp_path / "a", stop_after=1)
    assert run(tmp_path / "a", "resume=must")["state"] == "finished"


def test_a_crash_is_a_failed_run_that_goes_on(tmp_path, monkeypatch):
    run(tmp_path / "whole", "train.save_every=1")
    import rlrt.training.loop

    def crash(step, every, calls=[0]):  # noqa: B006
        calls[0] += 1
        if calls[0] > 2:
            raise RuntimeError("planned")
        return every > 0 and step % every == 0

    monkeypatch.setattr(rlrt.training.loop, "due", crash)
    with pytest.raises(RuntimeError, match="planned"):
        run(tmp_path / "cut", "train.save_every=1")
    summary = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert summary["error"] == "RuntimeError: planned"
    monkeypatch.undo()
    run(tmp_path / "cut", "train.save_every=1")
    same_end(tmp_path / "whole", tmp_path / "cut")


STATES = {
    "brackets": b"[" * 900_000,
    "a list": b"[]",
    "no text": b"\xff\xfe",
    "nothing in it": b"{}",
    "a step before all": b'{"step": -1, "optimiser": {"param_groups": []}, "method": {}}',
    "a step that is none": b'{"step": "x", "optimiser": {"param_groups": []}, "method": {}}',
    "a list as method": b'{"step": 2, "optimiser": {"param_groups": []}, "method": []}',
    "no groups": b'{"step": 2, "optimiser": {"param_groups": []}, "method": {}}',
    "groups of another kind": b'{"step": 2, "optimiser": {"param_groups": [{"params": "x"}]}, "method": {}}',
}


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut") / "run"
    run(folder, stop_after=2)
    return folder


def replaced(cut, folder, name, content):
    """A copy of a run, a file of whose checkpoint is another one, with its checksum: anybody can compute it."""
    shutil.copytree(cut, folder)
    checkpoint = folder / "checkpoints" / "step_2"
    (checkpoint / name).write_bytes(content)
    sums = json.loads((checkpoint / "checksums.json").read_text())
    sums[name] = hashlib.sha256(content).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    return folder


@pytest.mark.parametrize("state", STATES)
def test_a_state_with_the_right_checksum_is_still_data(cut, tmp_path, state):
    folder = replaced(cut, tmp_path / "x", "trainer/state.json", STATES[state])
    with pytest.raises(
        UserError, match=r"resume: .*step_2/trainer\S* (is not what rlrt writes|does not fit this run) \("
    ) as caught:
        run(folder)
    assert "resume=never" in str(caught.value)
    assert json.loads((folder / "summary.json").read_text())["step"] == 2


def test_so_are_the_tensors_of_the_trainer(cut, tmp_path):
    torch_file = tmp_path / "w.safetensors"
    save_file({"optimiser.nobody.exp_avg": torch.zeros(2)}, torch_file)
    folder = replaced(cut, tmp_path / "x", SHARD, torch_file.read_bytes())
    with pytest.raises(UserError, match="does not fit this run \\('nobody'\\)"):
        run(folder)
    folder = replaced(cut, tmp_path / "y", SHARD, (2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        run(folder)


def test_a_page_of_tokens_is_written_inside_the_folder(cut, tmp_path):
    """Links that lie there under its name, or its folder's, lead elsewhere."""
    (mine := tmp_path / "mine").write_text("mine")
    shutil.copytree(cut, folder := tmp_path / "x")
    (page := folder / "tokens" / "step_000004.html").symlink_to(mine)
    run(folder, "tracking.samples_every=4")
    assert mine.read_text() == "mine"
    assert "<html" in page.read_text()
    shutil.copytree(cut, folder := tmp_path / "y")
    shutil.rmtree(folder / "tokens")
    (folder / "tokens").symlink_to(tmp_path)
    with pytest.raises(UserError, match="tokens is a link, and rlrt writes only inside the folder itself"):
        run(folder, "tracking.samples_every=4")
