"""What a driver awaits before it takes a job for lost, what SLURM's ids are worth, and what srun's words say."""

from __future__ import annotations

import io
import json

import pytest

import rlrt.sweep.driver
from rlrt.records import claims
from rlrt.records.claims import file_of
from rlrt.sweep import cancelling, launchers, patience
from rlrt.sweep.driver import Driver
from rlrt.sweep.patience import Patience
from rlrt.sweep.settings import launcher_of
from rlrt.sweep.source import Grid
from rlrt.sweep.state import job_state
from tests.sweep.fake import FolderLauncher, many_jobs


def left(folder, **summary):
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"state": "running"} | summary))
    return folder


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    return now, Patience(lambda: now[0])


def seen(waits, folder, external):
    return waits.awaited(folder, job_state(folder, external, {"slurm_id": "7", "slurm_name": "rlrt-x"}), external)


def test_a_completed_job_whose_end_is_seen_late_is_awaited(tmp_path, clock):
    now, waits = clock
    folder = left(tmp_path / "job")
    assert seen(waits, folder, "COMPLETED").name == "running"
    now[0] = 59.0
    assert seen(waits, folder, "").alive  # SLURM has forgotten it by now
    left(folder, state="finished", step=3)
    assert seen(waits, folder, "").name == "finished"
    left(folder)
    assert seen(waits, folder, "COMPLETED").name == "running"  # another life is awaited anew
    now[0] = 119.0
    assert seen(waits, folder, "COMPLETED").name == "lost"


@pytest.mark.parametrize("external", ["FAILED", "NODE_FAIL", "", None])
def test_a_killed_job_is_not_awaited(tmp_path, clock, external):
    assert seen(clock[1], left(tmp_path / "job"), external).name == "lost"


def test_a_job_that_runs_elsewhere_is_awaited_while_its_claim_moves(tmp_path, clock):
    now, waits = clock
    folder = left(tmp_path / "job")
    limit = claims.BEATS * claims.BEAT_S + claims.LAG_S
    for beat in range(4):
        now[0] += limit - 1
        note = {"pid": 1, "host": "n", "machine": "another", "nonce": "a" * 16, "beat": beat}
        file_of(folder / "lease", 1).write_text(json.dumps(note))
        assert seen(waits, folder, None).name == "running"
    now[0] += limit
    assert seen(waits, folder, None).name == "lost"


def test_a_driver_that_sees_files_late_submits_nothing_twice(tmp_path, monkeypatch):
    """Its host sees the end of a job some looks after SLURM says COMPLETED."""
    monkeypatch.setattr(rlrt.sweep.driver, "POLL_S", 0.01)
    jobs = many_jobs(tmp_path, 2)

    class Late(FolderLauncher):
        looks = 0

        def process_states(self):
            self.looks += 1
            for folder in self.started:
                left(folder, **({"state": "finished", "step": 1, "final": {}} if self.looks > 20 else {}))
            return dict.fromkeys(self.started, "COMPLETED")

    launcher = Late(at_once=2)
    out = io.StringIO()
    assert Driver(tmp_path, Grid(jobs), launcher, 2, {"uri": None}, out).run() == 0
    assert sorted(launcher.started) == sorted(job.folder for job in jobs)
    assert "lost" not in out.getvalue()
    monkeypatch.setattr(patience, "LATE_S", 0.05)  # and without patience they are
    launcher = Late(at_once=2)
    assert Driver(tmp_path / "x", Grid(many_jobs(tmp_path / "x", 1)), launcher, 0, {"uri": None}, out).run() == 1
    assert "lost: seed=0" in out.getvalue()


def test_an_id_that_another_job_has_by_now_is_not_this_job(tmp_path, monkeypatch):
    """SLURM's state was lost, and its ids began anew: neither status nor wait nor cancel touch the other sweep's job."""
    answer = ["41|RUNNING|rlrt-b-2", "42|RUNNING|rlrt-a-1", "43|RUNNING|a|b"]
    monkeypatch.setattr(launchers, "squeue", lambda *words: answer if words[-1] == "%i|%T|%j" else None)
    mine, other = ("41", "rlrt-a-1"), ("41", "rlrt-b-2")
    assert launchers.slurm_states([mine, other, ("42", "rlrt-a-1")]) == {
        mine: "", other: "RUNNING", ("42", "rlrt-a-1"): "RUNNING",
    }  # fmt: skip
    calls = []
    monkeypatch.setattr(cancelling.subprocess, "run", lambda words, **more: calls.append(words))
    monkeypatch.setattr(cancelling, "slurm_states", launchers.slurm_states)
    for number, name in (mine, other):
        folder = left(tmp_path / name)
        (folder / "job.json").write_text(json.dumps({"slurm_id": number, "slurm_name": name}))
    assert cancelling.cancel([tmp_path / "rlrt-a-1"], print) == 0
    assert calls == []
    assert cancelling.cancel([tmp_path / "rlrt-b-2"], print) == 1
    assert calls == [["scancel", "--name=rlrt-b-2", "41"]]


SAID = """submitit INFO (2026-11-27) - Starting with JobEnvironment
srun: error: node2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=41.0
slurmstepd-node1: error: *** STEP 41.0 ON node1 CANCELLED AT 2026-11-27T18:00:00 ***
srun: error: node1: task 0: Terminated
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SAID, "task 1 of the job ended on node2: Killed (submitit/41_0_log.out)"),
        (
            SAID.replace("task 1: Killed", "tasks 1,3: Out Of Memory"),
            "tasks 1,3 of the job ended on node2: Out Of Memory",
        ),
        ("srun: error: node1: task 0: Terminated\n", ""),
        (SAID.replace("Killed", "\x1b[31mKilled"), "\\x1b[31mKilled"),
        ("nothing", ""),
    ],
)
def test_the_lost_task_is_named_by_srun_where_the_job_could_not(tmp_path, text, says):
    """Under a short KillWait srun kills rank 0 before it can write who is gone."""
    folder = left(tmp_path / "job")
    (tmp_path / "submitit").mkdir()
    (tmp_path / "submitit" / "41_0_log.out").write_text(text)
    spec = {"slurm_id": "41", "slurm_name": "rlrt-x"}
    assert says in job_state(folder, "FAILED", spec).error
    assert bool(job_state(folder, "FAILED", spec).error) == bool(says)
    assert job_state(folder, "FAILED", {"slurm_id": "42", "slurm_name": "rlrt-x"}).error == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cpus_per_task": 12}, ["--cpus-per-task=12"]),
        ({"cpus_per_task": 12, "nodes": 2}, ["--cpus-per-task=12", "--kill-on-bad-exit=1"]),
        ({"additional_parameters": {"cpus_per_task": 3}}, ["--cpus-per-task=3"]),
    ],
)
def test_srun_is_told_the_cpus_of_a_task(tmp_path, values, words):
    """SLURM 22.05 to 23.02 do not tell it what sbatch got."""
    launcher = launcher_of({"kind": "slurm"} | values)
    (line,) = [line for line in launcher.script(1, tmp_path).splitlines() if line.startswith("srun")]
    assert [word for word in line.split() if word.startswith(("--cpus", "--kill"))] == words
