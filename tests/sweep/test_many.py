"""A driver with a thousand jobs: what it looks at does not grow with what waits or has ended."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import pytest

import rlrt.sweep.driver
from rlrt.errors import UserError
from rlrt.records.files import write_json
from rlrt.records.folder import RunFolder
from rlrt.sweep import launchers
from rlrt.sweep.driver import Driver
from rlrt.sweep.launchers import LocalLauncher, SlurmView, array_limit, array_suffix
from rlrt.sweep.source import Grid
from rlrt.sweep.state import job_state
from tests.sweep.fake import FolderLauncher, many_jobs


def test_a_thousand_jobs_are_each_looked_at_while_they_live(tmp_path, monkeypatch):
    looks = [0]

    def counted(*args):
        looks[0] += 1
        return job_state(*args)

    monkeypatch.setattr(rlrt.sweep.driver, "job_state", counted)
    monkeypatch.setattr(rlrt.sweep.driver, "POLL_S", 0.0)
    jobs, launcher, out = many_jobs(tmp_path, 1000), FolderLauncher(at_once=50, ticks=3), io.StringIO()
    assert Driver(tmp_path, Grid(jobs), launcher, 0, {"uri": None}, out).run() == 0
    assert len(launcher.started) == len(set(launcher.started)) == 1000
    assert "1000 finished" in out.getvalue()
    # once at the start, once for every tick of its life and once at its end: 1 + 3 + 1
    assert looks[0] <= 5 * 1000
    looks[0] = 0
    assert Driver(tmp_path, Grid(jobs), launcher, 0, {"uri": None}, io.StringIO()).run() == 0
    assert len(launcher.started) == 1000  # nothing is run again
    assert looks[0] == 1000


def test_an_array_is_no_longer_than_the_cluster_takes(monkeypatch):
    import subprocess

    answer = subprocess.CompletedProcess([], 0, "MaxArraySize            = 501\nMaxJobCount = 10000\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: answer)
    assert array_limit() == 501
    assert array_suffix(["a"], 0) == ""
    assert array_suffix(["a", "b"], 1) == "_1"


def failed(job, **why):
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.folder / "summary.json", {"state": "failed", "error": "e", **why})


@pytest.mark.parametrize(
    ("failure", "place", "again"),
    [
        ("error", None, True),
        ("config", None, False),
        ("memory", None, False),
        ("memory", "nowhere", False),
        ("memory", "elsewhere, smaller", True),
        ("input", None, True),  # a person may have put the model there
        ("disk", None, True),
    ],
)
def test_what_failed_in_an_earlier_life_of_the_command(tmp_path, monkeypatch, failure, place, again):
    monkeypatch.setattr(rlrt.sweep.driver, "POLL_S", 0.0)
    (job,) = many_jobs(tmp_path, 1)
    failed(job, failure=failure)
    job.write(place=place)
    launcher = FolderLauncher(at_once=1)
    code = Driver(tmp_path, Grid([job]), launcher, 1, {"uri": None}, io.StringIO()).run()
    assert (code, len(launcher.started)) == ((0, 1) if again else (1, 0))


@pytest.mark.parametrize(("failure", "starts"), [("error", 3), ("input", 1), ("disk", 1), ("memory", 1), ("config", 1)])
def test_what_fails_now_is_tried_again_only_where_that_may_help(tmp_path, monkeypatch, failure, starts):
    monkeypatch.setattr(rlrt.sweep.driver, "POLL_S", 0.0)

    class Failing(FolderLauncher):
        def process_states(self):
            found = super().process_states()
            for folder in [f for f, word in found.items() if not word]:
                write_json(folder / "summary.json", {"state": "failed", "failure": failure, "error": "planned"})
            return found

    (job,) = many_jobs(tmp_path, 1)
    launcher, out = Failing(at_once=1), io.StringIO()
    assert Driver(tmp_path, Grid([job]), launcher, 2, {"uri": None}, out).run() == 1
    assert len(launcher.started) == starts
    assert "planned" in out.getvalue()
    assert "log.txt" in out.getvalue()


def test_a_job_that_gets_further_has_its_retries_back(tmp_path, monkeypatch):
    """It fails at step 5, 9, 9, 9: two tries with progress, then two that lead nowhere (max_retries=2)."""
    monkeypatch.setattr(rlrt.sweep.driver, "POLL_S", 0.0)
    ends = iter([5, 9, 9, 9, 9, 9])

    class Failing(FolderLauncher):
        def process_states(self):
            found = super().process_states()
            for folder in [f for f, word in found.items() if not word]:
                write_json(folder / "summary.json", {"state": "failed", "failure": "error", "error": "planned"})
                (folder / "metrics.jsonl").write_text(json.dumps({"step": next(ends)}) + "\n")
            return found

    (job,) = many_jobs(tmp_path, 1)
    launcher = Failing(at_once=1)
    assert Driver(tmp_path, Grid([job]), launcher, 2, {"uri": None}, io.StringIO()).run() == 1
    assert len(launcher.started) == 4


def test_a_refused_submission_is_tried_again_while_others_live(tmp_path, monkeypatch):
    monkeypatch.setattr(rlrt.sweep.driver, "POLL_S", 0.0)
    monkeypatch.setattr(rlrt.sweep.driver, "PAUSE_S", 0.05)

    class Refusing(FolderLauncher):
        refusals = 0

        def submit(self, folders, sweep, name):
            if self.started and self.refusals < 2:
                self.refusals += 1
                raise UserError("sbatch refused the jobs: try later")
            super().submit(folders, sweep, name)
            if jobs[0].folder in folders:
                self._left[jobs[0].folder] = 3000  # the first one outlives the others
            return {}

    jobs, launcher, out = many_jobs(tmp_path, 4), Refusing(at_once=2), io.StringIO()
    assert Driver(tmp_path, Grid(jobs), launcher, 0, {"uri": None}, out).run() == 0
    assert (len(launcher.started), launcher.refusals) == (4, 2)
    assert out.getvalue().count("It is tried again in") == 2
    only = Refusing(at_once=1)
    only.started.append(tmp_path)
    with pytest.raises(UserError, match="try later"):
        Driver(tmp_path / "alone", Grid(many_jobs(tmp_path / "alone", 1)), only, 0, {"uri": None}, io.StringIO()).run()


def test_jobs_on_slurm_are_not_run_again_where_nobody_can_ask(tmp_path, monkeypatch):
    (job,) = many_jobs(tmp_path, 1)
    job.write(slurm_name="rlrt-x", slurm_id="7_0")
    monkeypatch.setenv("PATH", "/nowhere")
    launcher = FolderLauncher(at_once=1)
    with pytest.raises(UserError, match="this machine has no squeue to query them"):
        Driver(tmp_path, Grid([job]), launcher, 0, {"uri": None}, io.StringIO()).run()
    assert launcher.started == []


def test_slurms_silence_changes_nothing(monkeypatch):
    one, two = ("1", "rlrt-a"), ("2", "rlrt-a")
    said, answers = [], iter([{one: "RUNNING"}, None, {one: "COMPLETED"}])
    monkeypatch.setattr(launchers, "slurm_states", lambda jobs: next(answers))
    monkeypatch.setattr(launchers, "SLURM_POLL_S", 0.0)
    monkeypatch.setattr(launchers, "SILENCE_S", -1.0)
    view = SlurmView()
    assert view.states([one, two], said.append) == {one: "RUNNING", two: "PENDING"}
    assert view.states([one], said.append) == {one: "RUNNING"}
    assert len(said) == 1
    assert view.states([one], said.append) == {one: "COMPLETED"}


@pytest.mark.parametrize(("seen", "given"), [(None, None), ("", ""), ("0,1", "0")])
def test_jobs_here_see_gpus_of_those_that_their_driver_sees(tmp_path, monkeypatch, seen, given):
    """submitit would hide them all, and device=auto would quietly train on the CPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)

    @dataclass
    class Looking(LocalLauncher):
        work = staticmethod(look)

    launcher = Looking(n_jobs=1, threads_per_job=None, nodes=1, tasks_per_node=1, gpus_per_node=None)
    launcher.submit([tmp_path], tmp_path, "x")
    launcher.settle()
    assert (tmp_path / "seen").read_text() == repr(given)


def look(folder):
    import os
    import pathlib

    (pathlib.Path(folder) / "seen").write_text(repr(os.environ.get("CUDA_VISIBLE_DEVICES")))


def test_a_grid_wants_whole_what_a_search_has_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr(rlrt.sweep.driver, "POLL_S", 0.0)
    (job,) = many_jobs(tmp_path, 1)
    place = RunFolder(job.folder)
    place.ask_to_prune()
    place.set_state("pruned", step=3)
    launcher = FolderLauncher(at_once=1)
    assert Driver(tmp_path, Grid([job]), launcher, 0, {"uri": None}, io.StringIO()).run() == 0
    assert launcher.started == [job.folder]
    assert not place.prune_asked()
