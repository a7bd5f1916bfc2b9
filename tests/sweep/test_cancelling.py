"""What a folder says does not decide which process gets a signal, and which job of SLURM is cancelled."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest

from rlrt import cancel as command
from rlrt.records.lease import hold_lease, process_of
from rlrt.sweep import cancelling
from rlrt.sweep.names import slurm_id, slurm_name


def note(path, pid, host=None):
    path.with_suffix(".json").write_text(json.dumps({"pid": pid, "host": host or socket.gethostname()}))


@pytest.mark.parametrize("pid", [-1, 0, 1, os.getppid(), "1", None, 1e3, 10**9, True, [5]])
def test_only_the_process_that_holds_the_lock(tmp_path, monkeypatch, pid):
    killed = []
    monkeypatch.setattr(os, "kill", lambda *words: killed.append(words))
    job = tmp_path / "sweep" / "a-1"
    job.mkdir(parents=True)
    (job / "job.json").write_text("{}")
    with hold_lease(job / "lease"), hold_lease(job.parent / "driver"):
        assert process_of(job / "lease") == os.getpid()
        for lease in (job / "lease", job.parent / "driver"):
            note(lease, pid)
            assert process_of(lease) is None
        command.stop(job.parent)
        assert killed == []
        note(job / "lease", os.getpid())
        command.stop(job.parent)
        assert killed == [(os.getpid(), signal.SIGTERM)]
        note(job / "lease", os.getpid(), "elsewhere")
        assert process_of(job / "lease") is None


@pytest.mark.parametrize(
    "value", ["--signal=KILL", "-u root", "", "1 2", "1;2", "1_2_3", 5, None, [], "1\n", "٣", "9" * 30]
)
def test_an_id_is_an_id(value):
    assert slurm_id({"slurm_id": value}) is None
    assert slurm_name({"slurm_name": value}) is None


def test_a_job_is_cancelled_by_the_name_under_which_it_was_submitted(tmp_path, monkeypatch):
    """SLURM cancels what has both: a copied id of another job of the user has another name."""
    calls, said = [], []
    monkeypatch.setattr(cancelling.subprocess, "run", lambda words, **more: calls.append(words))
    monkeypatch.setattr(cancelling, "slurm_states", lambda jobs: dict.fromkeys(jobs, "RUNNING"))
    specs = [
        ("7_0", "rlrt-a-12"),
        ("7_1", "rlrt-a-12"),
        ("8", "rlrt-b-34"),
        ("9", None),
        ("10", "--all"),
        ("--all", "rlrt-c"),
    ]
    for number, (slurm, name) in enumerate(specs):
        (tmp_path / f"j{number}").mkdir()
        (tmp_path / f"j{number}" / "job.json").write_text(json.dumps({"slurm_id": slurm, "slurm_name": name}))
    assert cancelling.cancel([tmp_path / f"j{n}" for n in range(len(specs))], said.append) == 3
    assert calls == [["scancel", "--name=rlrt-a-12", "7_0", "7_1"], ["scancel", "--name=rlrt-b-34", "8"]]
    assert len(said) == 2
