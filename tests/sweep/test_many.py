"""A driver with a thousand jobs: what it looks at does not grow with what waits or has ended."""

from __future__ import annotations

import io

import rlrt.sweep.driver
from rlrt.sweep.driver import Driver
from rlrt.sweep.launchers import array_limit, place_in
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
    assert place_in(["a"], 0) == ""
    assert place_in(["a", "b"], 1) == "_1"
