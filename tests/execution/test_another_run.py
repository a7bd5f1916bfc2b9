"""A folder that was typed holds one run: another one does not go on there, and does not show that one's numbers as its own."""

from __future__ import annotations

import json
import re

import pytest

import rlrt.records.identity
from rlrt.errors import UserError
from rlrt.execution.execute import execute
from rlrt.paths import listed
from tests.forked import forked
from tests.helpers import settings

SMALL = (
    "train.steps=3",
    "train.prompts_per_step=2",
    "train.save_every=1",
    "train.eval_every=0",
    "eval.prompts=2",
    "tracking=none",
)


def go(folder, *more, stop_after=None):
    """A run in this process, stopped after some steps."""
    made, done = settings(*SMALL, *more), [0]

    def stop():
        done[0] += 1
        return stop_after is not None and done[0] >= stop_after

    return execute(made, folder, lambda line: None, stop, progress=False)


def content(folder):
    """Every file of a run, but for the lease's note and the log."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("lease.json", "log.txt")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


OTHERS = [
    ("method=grpo", 'method.name is "rlrt" there and "grpo" here'),
    ("seed=7", "seed is 0 there and 7 here"),
    ("train.lr=1e-2", "train.lr is 0.001 there and 0.01 here"),
    ("data.numbers=4", "data.numbers is 3 there and 4 here"),
    ("train.steps=5", "train.steps is 3 there and 5 here"),
    ("method.lambda_init=0.25", "method.lambda_init is 0.5 there and 0.25 here"),
    ("teacher.weights=ema", 'teacher.weights is "old" there and "ema" here'),
]


@pytest.fixture(scope="module", params=[1, None], ids=["interrupted", "finished"])
def begun(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "run"
    assert go(folder, stop_after=request.param)["state"] == ("interrupted" if request.param else "finished")
    return folder


@pytest.mark.parametrize(("other", "says"), OTHERS, ids=[o for o, _ in OTHERS])
@pytest.mark.parametrize("resume", ["auto", "must"])
def test_another_run_is_refused_by_what_differs_and_nothing_is_changed(begun, other, says, resume):
    before = content(begun)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        go(begun, other, f"resume={resume}")
    assert "resume=never" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(begun) == before


def test_resume_never_puts_the_other_run_aside(tmp_path):
    folder = tmp_path / "run"
    go(folder, stop_after=1)
    before = content(folder)
    assert go(folder, "method=grpo", "resume=never")["state"] == "finished"
    assert content(tmp_path / "run.old-1") == before
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [0, 1, 2, 3]
    assert not any("rlrt/lambda" in r for r in records)


def test_what_says_where_and_how_a_run_is_kept_is_no_other_run(begun):
    """Another place to track, other saves, other threads: the same run goes on, or is over."""
    go(begun, "tracking.samples=1", "train.save_every=2", "train.keep_last=3", "threads=1")
    assert json.loads((begun / "summary.json").read_text())["state"] == "finished"


def test_code_that_has_changed(tmp_path, monkeypatch):
    go(tmp_path / "run", stop_after=1)
    monkeypatch.setattr(rlrt.records.identity, "code_hash", lambda: "other")
    with pytest.raises(
        UserError, match="the code, a library, or the content of the model or the data has changed since"
    ):
        go(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": 5}'])
def test_a_run_whose_manifest_is_damaged_is_not_taken_for_ones_own(tmp_path, text):
    folder = tmp_path / "run"
    go(folder, stop_after=1)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="holds another run"):
        go(folder)
    assert listed(folder / "checkpoints")
    assert go(folder, "resume=never")["state"] == "finished"
    assert listed(tmp_path / "run.old-1" / "checkpoints")


def test_numbers_of_nobody_are_not_shown_as_ones_own(tmp_path):
    """A summary that says finished, without a manifest that says who."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"state": "finished", "step": 3, "final": {"eval/avg_at_8": 1.0}}')
    with pytest.raises(UserError, match="holds another run"):
        go(tmp_path / "run")
    assert go(tmp_path / "run", "resume=never")["final"] != {"eval/avg_at_8": 1.0}


def test_a_damaged_config_hides_what_differs_but_not_that_it_does(tmp_path):
    folder = tmp_path / "run"
    go(folder, stop_after=1)
    (folder / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="holds another run"):
        go(folder, "seed=3")


def test_a_life_that_ended_before_it_wrote_who_it_was(tmp_path):
    """A worker sets the state first; a kill then leaves a summary alone."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"state": "running"}')
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / "run" / name).touch()
    assert go(tmp_path / "run")["state"] == "finished"


def test_the_command(tmp_path):
    typed = (*SMALL, "train.steps=1", "hydra.run.dir=mine")
    assert forked("run", typed, tmp_path).returncode == 0
    done = forked("run", (*typed, "method=grpo", "seed=4"), tmp_path)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith(f"error: hydra.run.dir: {tmp_path}/mine holds another run (identity ")
    assert "seed is 0 there and 4 here" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "avg@8" not in done.stdout
    assert forked("run", (*typed, "method=grpo", "seed=4", "resume=never"), tmp_path).returncode == 0
    assert (tmp_path / "mine.old-1" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("sweep.json", "{}", "a sweep"),
        ("checksums.json", "{}", "a checkpoint"),
        ("problems.jsonl", "", "an evaluation"),
        ("job.json", '{"identity": "0123456789ab"}', "a job of a sweep with another identity"),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_of_another_kind_is_no_runs_folder(tmp_path, name, text, says, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(UserError, match=f"is the folder of {says}"):
        go(tmp_path / "run", f"resume={resume}")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [name]


def test_somebodys_config_is_not_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("a: 1\n")
    with pytest.raises(UserError, match="holds another run"):
        go(tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "a: 1\n"


def test_a_link_to_a_run_is_put_aside_beside_the_run(tmp_path):
    (tmp_path / "disk").mkdir()
    go(tmp_path / "disk" / "real", stop_after=1)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    assert go(tmp_path / "link", "resume=never")["state"] == "finished"
    assert (tmp_path / "disk" / "real.old-1" / "manifest.json").is_file()


def test_a_sweep_does_not_show_another_runs_numbers_in_its_jobs_folder(tmp_path):
    typed = ("-m", *SMALL, "train.steps=1", "method=rlrt", "seed=0", "hydra.sweep.dir=s")
    assert forked("run", typed, tmp_path).returncode == 0
    (job,) = (tmp_path / "s").glob("*/job.json")
    done = forked(
        "run", (*SMALL, "train.steps=1", "method=grpo", f"hydra.run.dir='{job.parent}'", "resume=never"), tmp_path
    )
    assert done.returncode == 2
    assert "is the folder of a job of a sweep with another identity" in done.stderr
    spec = job.read_text()
    job.unlink()  # as somebody would who wants to
    assert (
        forked(
            "run", (*SMALL, "train.steps=1", "method=grpo", f"hydra.run.dir='{job.parent}'", "resume=never"), tmp_path
        ).returncode
        == 0
    )
    job.write_text(spec)
    done = forked("run", typed, tmp_path)
    assert done.returncode == 2, done.stdout
    assert "holds another run (identity " in done.stderr


@pytest.mark.parametrize("folder", ["run", "."])
def test_a_sweep_in_a_runs_folder_or_the_current_one_is_refused(tmp_path, folder):
    go(tmp_path / "run", stop_after=1)
    before = sorted(p.name for p in tmp_path.iterdir())
    done = forked("run", ("-m", *SMALL, "seed=0,1", f"hydra.sweep.dir={folder}"), tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: hydra.sweep.dir: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
