"""A run's folder."""

from __future__ import annotations

import pytest

from rlrt.errors import UserError
from rlrt.records.folder import RunFolder


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
