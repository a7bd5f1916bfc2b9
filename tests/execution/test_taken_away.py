"""A folder that is taken away while it is in use: one sentence, exit code 2, other jobs go on, the same command mends it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

import tests.forked
from rlrt.errors import DiskFull, FolderLost, amount
from rlrt.records.files import write_json
from rlrt.records.folder import Beginning, RunFolder
from rlrt.records.storage import loss
from tests.forked import forked
from tests.held import Hold
from tests.helpers import ONE_STEP
from tests.sweep.test_driver import wait_for

RUN = (
    "method=grpo", "train.steps=3", "train.prompts_per_step=2", "train.eval_every=0", "eval.prompts=2",
    "eval.samples_per_prompt=2", "train.save_every=1", "tracking=none",
)  # fmt: skip
SWEEP = ("-m", "method=grpo,rlrt", *RUN[1:], "hydra.sweep.dir=s", "hydra.launcher.n_jobs=1")
NOBODY = 65534


@pytest.fixture
def everybodys():
    """A folder that an ordinary user may write and enter, unlike pytest's."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o777)
    yield place
    subprocess.run(["chmod", "-R", "u+rwX", str(place)], check=True)
    shutil.rmtree(place)


def disk(place, size):
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=False)
    return done.returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    if not disk(tmp_path / "disk", "16m"):
        pytest.skip("only root may mount a small disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def fill(place, left=0):
    with contextlib.suppress(OSError):
        (place / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(place).free - left)))


def removed(folder):
    """Remove a folder in which a thread of the run may still be at work."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def meanwhile(hold, place, act):
    """While a run waits after two steps, call ``act`` with its folder, then let it go; returns the thread that does it."""

    def disturb():
        wait_for(hold.waiting)
        (record,) = place.glob("**/metrics.jsonl")
        act(record.parent)
        hold.release()

    thread = threading.Thread(target=disturb)
    thread.start()
    return thread


def as_nobody(monkeypatch):
    """Commands in forks run as an ordinary user, if the tests run as root."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - what a fork could not read any more

    prepare = tests.forked._like_a_fresh_process

    def ordinary(*arguments):
        prepare(*arguments)
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    monkeypatch.setattr(tests.forked, "_like_a_fresh_process", ordinary)


def one_sentence(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("left", [0, 8192, 30_000, 120_000, 900_000])
def test_a_disk_that_is_full_from_some_byte_on(small_disk, left):
    fill(small_disk, left)
    typed = [*RUN, f"hydra.run.dir={small_disk}/run"]
    one_sentence(forked("run", typed, small_disk), "the disk is full", "the same command")
    summary = small_disk / "run" / "summary.json"
    assert not summary.exists() or json.loads(summary.read_text())["state"] == "failed"
    (small_disk / "ballast").unlink()
    done = forked("run", typed, small_disk)
    assert done.returncode == 0, done.stderr


def test_a_sweep_whose_disk_fills_reaches_every_job_and_goes_on(small_disk, held):
    hold = held(steps=2)
    typed = [*SWEEP, *hold.keys]
    waiting = meanwhile(hold, small_disk, lambda job: fill(small_disk))
    done = forked("run", typed, small_disk)
    waiting.join()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("the disk is full") == 2  # the job that ran, and the one that waited
    (small_disk / "ballast").unlink()
    done = forked("run", typed, small_disk)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 finished" in done.stdout


def test_evaluations_and_reports_on_a_full_disk(small_disk):
    typed = ["-m", "method=grpo", *ONE_STEP, "tracking=none", "hydra.sweep.dir=s"]
    assert forked("run", typed, small_disk).returncode == 0
    (run,) = (f.parent for f in (small_disk / "s").glob("*/job.json"))
    fill(small_disk)
    for command, words in (("evaluate", "the disk is full"), ("report", "No space left on device")):
        one_sentence(forked(command, [str(run if command == "evaluate" else run.parent)], small_disk), words)


def test_a_runs_folder_that_is_removed(tmp_path, held):
    hold = held(steps=2)
    typed = [*RUN, "hydra.run.dir=run", *hold.keys]
    waiting = meanwhile(hold, tmp_path, removed)
    one_sentence(forked("run", typed, tmp_path), "run was removed while it was in use")
    waiting.join()
    assert not (tmp_path / "run").exists()
    done = forked("run", typed, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("whose", ["job", "sweep"])
def test_a_jobs_or_the_sweeps_folder_that_is_removed(tmp_path, held, whose):
    hold = held(steps=2)
    waiting = meanwhile(hold, tmp_path, lambda job: removed(job if whose == "job" else job.parent))
    done = forked("run", [*SWEEP, *hold.keys], tmp_path)
    waiting.join()
    if whose == "sweep":
        one_sentence(done, "hydra.sweep.dir: s was removed while its jobs ran")
    else:
        assert done.returncode == 1, done.stdout + done.stderr
        assert "1 failed, 1 finished" in done.stdout
        assert "was removed while it was in use; the same command begins it anew\n" in done.stdout
    done = forked("run", [*SWEEP, *hold.keys], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 finished" in done.stdout


@pytest.fixture
def held_by_everybody(everybodys):
    hold = Hold(everybodys / "hold", 2)
    hold.folder.chmod(0o777)
    yield hold
    hold.release()


def closed(folder, rights=0o555):
    for place in (folder / "checkpoints", folder):
        place.chmod(rights)


@pytest.mark.parametrize("rights", [0o555, 0o000])
def test_the_right_to_write_that_is_taken_from_a_run(everybodys, held_by_everybody, monkeypatch, rights):
    as_nobody(monkeypatch)
    waiting = meanwhile(held_by_everybody, everybodys, lambda run: closed(run, rights))
    typed = [*RUN, "hydra.run.dir=run", *held_by_everybody.keys]
    one_sentence(forked("run", typed, everybodys), "cannot be written any more (Permission denied)")
    waiting.join()
    subprocess.run(["chmod", "-R", "u+rwX", str(everybodys)], check=True)
    done = forked("run", [*typed, "resume=must"], everybodys)
    assert done.returncode == 0, done.stderr


def test_the_right_to_write_that_is_taken_from_a_job(everybodys, held_by_everybody, monkeypatch):
    as_nobody(monkeypatch)
    waiting = meanwhile(held_by_everybody, everybodys, closed)
    done = forked("run", [*SWEEP, *held_by_everybody.keys], everybodys)
    waiting.join()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 finished" in done.stdout
    assert "cannot be written any more (Permission denied); allow it" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    subprocess.run(["chmod", "-R", "u+rwX", str(everybodys)], check=True)
    done = forked("run", [*SWEEP, *held_by_everybody.keys], everybodys)
    assert "2 finished" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_errors_that_mean_a_full_disk(tmp_path, number):
    assert isinstance(loss(OSError(number, ""), tmp_path), DiskFull)
    assert isinstance(loss(Exception(f"serializing: (os error {number})"), tmp_path), DiskFull)


def test_errors_that_are_about_something_else(tmp_path):
    assert loss(FileNotFoundError(errno.ENOENT, "", "/nope/data"), tmp_path) is None
    assert loss(PermissionError(errno.EACCES, "", "/root/x"), tmp_path) is None
    assert loss(ValueError("no"), tmp_path) is None
    assert isinstance(loss(OSError(errno.EROFS, "", str(tmp_path / "x")), tmp_path), FolderLost)
    assert isinstance(loss(OSError(errno.EIO, "", str(tmp_path / "x")), tmp_path), FolderLost)
    assert isinstance(loss(FileNotFoundError(errno.ENOENT, ""), tmp_path / "gone"), FolderLost)


def test_a_state_is_written_over_itself_where_nothing_else_fits(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.set_state("running", step=1)

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("rlrt.records.folder.write_json", full)
    folder.set_state("failed", error="x")
    assert folder.summary()["state"] == "failed"
    with pytest.raises(OSError, match="No space"):
        folder.note(error="x" * 10_000)
    assert folder.summary()["error"] == "x"


def test_what_a_broken_write_leaves(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {(1, 2): 3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mine", ["grand/parent", "grand/parent/r", "grand"])
def test_a_refused_run_removes_what_it_made_and_nothing_else(tmp_path, mine):
    (tmp_path / mine).mkdir(parents=True)
    typed = ["data=file", "data.path=/nope", *ONE_STEP, "hydra.run.dir=grand/parent/r"]
    one_sentence(forked("run", typed, tmp_path), "data.path")
    left = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    assert left == {Path(mine), *Path(mine).parents} - {Path()}


def test_a_users_own_log_stays(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "log.txt").write_text("mine")
    one_sentence(forked("run", ["data=file", "data.path=/nope", "hydra.run.dir=r"], tmp_path), "data.path")
    assert (tmp_path / "r" / "log.txt").read_text() == "mine"


def test_a_refused_run_in_a_folder_of_somebody_else(everybodys, monkeypatch):
    as_nobody(monkeypatch)
    (everybodys / "theirs").mkdir(mode=0o755)
    done = forked("run", ["data=file", "data.path=/nope", "hydra.run.dir=theirs/r"], everybodys)
    one_sentence(done, "theirs/r" if os.getuid() == 0 else "data.path")
    assert (everybodys / "theirs").is_dir()


def test_a_folder_in_which_a_run_began_is_kept(tmp_path):
    beginning = Beginning(tmp_path / "a" / "r")
    RunFolder(tmp_path / "a" / "r").set_state("failed")
    beginning.undo()
    assert (tmp_path / "a" / "r" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (4096, "4.1 kB"), (5_600_000, "5.6 MB"), (12_340_000_000, "12.3 GB")],
)
def test_units_say_something(count, text):
    assert amount(count) == text


def test_a_checkpoints_files_keep_their_rights(tmp_path):
    """A private file stays private when it is replaced, and another keeps what its owner gave it."""
    write_json(tmp_path / "p.json", {}, private=True)
    write_json(tmp_path / "p.json", {"a": 1}, private=True)
    assert stat.S_IMODE((tmp_path / "p.json").stat().st_mode) == 0o600
