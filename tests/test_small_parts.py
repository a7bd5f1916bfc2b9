"""Identity, folders' names, secrets and the terminal."""

from __future__ import annotations

import io
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlrt.errors import UserError
from rlrt.folder import RunFolder, config_text, stored_config
from rlrt.identity import identity, readable, sweep_hash
from rlrt.loop import due, learning_rate
from rlrt.terminal import Progress, before_after, table
from tests.helpers import settings


def identity_of(*overrides):
    return identity(settings(*overrides).plain)


def test_identity_follows_what_is_computed():
    base = identity_of()
    assert base == identity_of()
    assert base == identity_of("tracking=none", "train.save_every=7", "train.keep_last=0", "resume=never", "threads=1")
    for other in ("seed=1", "train.lr=0.5", "method=grpo", "data.highest=14", "train.steps=3"):
        assert identity_of(other) != base, other


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
    import rlrt.identity

    base = identity_of()
    monkeypatch.setattr(rlrt.identity, "code_hash", lambda: "other")
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


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run")


def test_state_remembers_the_slurm_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    folder = RunFolder(tmp_path / "r")
    folder.set_state("running", step=3)
    folder.set_state("finished")
    assert (folder.summary()["state"], folder.summary()["step"], folder.summary()["slurm_job_id"]) == (
        "finished",
        3,
        "17",
    )


def test_progress_without_a_terminal_has_no_control_codes():
    out = io.StringIO()
    progress = Progress(3, out)
    progress.show(0, {"eval/greedy": 0.5, "eval/avg_at_8": 0.25, "eval/pass_at_8": 0.75})
    progress.show(3, {"reward/mean": 0.5, "rollout/length_mean": 12.0, "policy/entropy": 0.3})
    progress.end()
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "avg@8 0.250" in out.getvalue()
    assert all(len(line) < 80 for line in out.getvalue().splitlines())


def test_tables_line_up():
    lines = table([["a", "long heading"], ["longer", "1"]]).splitlines()
    assert lines == ["a       long heading", "------  ------------", "longer             1"]
    assert "avg@8" in before_after({"eval/avg_at_8": 0.1}, {"eval/avg_at_8": 0.2}, 8)


def schedule(kind, warmup, steps):
    config = settings(
        f"train.lr_schedule={kind}", f"train.warmup_steps={warmup}", f"train.steps={steps}", "train.lr=1"
    ).train
    return [learning_rate(config, s) for s in range(1, steps + 1)]


def test_learning_rate_by_hand():
    assert schedule("constant", 2, 4) == [0.5, 1.0, 1.0, 1.0]
    assert schedule("linear", 0, 4) == [1.0, 0.75, 0.5, 0.25]
    assert schedule("linear", 2, 4) == [0.5, 1.0, 1.0, 0.5]
    assert schedule("cosine", 0, 2) == pytest.approx([1.0, 0.5])


def test_due():
    assert [due(s, 3) for s in (1, 2, 3, 6)] == [False, False, True, True]
    assert not due(3, 0)


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


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="glibc's setting")
def test_the_c_library_takes_what_it_is_told_about_freed_memory():
    """In a process of its own, since it cannot be undone; a threshold above glibc's largest would be refused."""
    program = "from rlrt.allocator import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_gpu_benchmark_says_when_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    words, root = [sys.executable, "-m", "benchmarks.gpu"], Path(__file__).parents[1]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 1
    assert done.stderr.strip() == "benchmarks.gpu: expected a CUDA GPU, found none here; run it where there is one."


def test_a_config_comes_back_from_its_file_as_it_was(tmp_path):
    texts = [
        "1e-3",
        "1e-06",
        "1_000",
        ".5",
        "",
        "yes",
        "null",
        "${x}",
        "${",
        "a: b",
        "a\nb ",
        " x",
        "é\u2028",
        "2020-01-01",
        "- x",
        "'",
        "0x1f",
        "~",
    ]
    plain = {
        "texts": texts,
        "numbers": [1e-6, 1.0, 3, True, None, 1e22],
        "empty": {},
        "none": [],
        "deep": {"a": {"b": "1e5"}},
    }
    (tmp_path / "config.yaml").write_text(config_text(plain), encoding="utf-8")
    assert stored_config(tmp_path) == plain
    from omegaconf import OmegaConf

    plain["texts"].remove("${")  # which OmegaConf takes for a broken interpolation
    (tmp_path / "config.yaml").write_text(config_text(plain), encoding="utf-8")
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == plain
