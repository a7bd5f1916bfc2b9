"""Runs and sweeps that were recorded before the package got its folders (commit 20c589b) are read as ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlrt.records.folder import RunFolder
from tests.forked import forked

RECORDED = Path(__file__).parent / "before_the_move"


@pytest.fixture
def old(tmp_path):
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    return tmp_path


def said(module, arguments, cwd):
    done = forked(module, arguments, cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_status_and_report_show_the_sweep(old):
    assert "2 finished" in said("status", ["sweep"], old)
    said("report", ["sweep"], old)
    page = (old / "sweep" / "report.html").read_text()
    assert "method=grpo" in page or "grpo" in page
    assert "avg@2" in page


def test_evaluate_measures_the_checkpoint_as_the_run_did(old):
    said("evaluate", ["run"], old)
    said("evaluate", ["run", "--step", "0"], old)
    (newest,) = (old / "run" / "evaluations").glob("step_2-*/results.json")
    recorded = RunFolder(old / "run").summary()["final"]["eval/greedy"]
    assert f'"greedy": [\n    {recorded}' in newest.read_text()


def test_sync_sends_the_record(old):
    import mlflow

    uri = f"sqlite:///{old}/mlflow.db"
    RunFolder(old / "run").note(mlflow_complete=False)  # as of a run whose server was away
    said("sync", [str(old / "run"), "--uri", uri], old)
    (run,) = mlflow.MlflowClient(uri).search_runs(["1"])
    assert (run.data.params["method.name"], run.data.params["model.lora"]) == ("rlrt", "1")
    assert run.data.metrics["eval/greedy"] == RunFolder(old / "run").summary()["final"]["eval/greedy"]


def test_a_stored_run_is_run_again(old):
    out = said("run", ["+from=run", "train.steps=1", "train.eval_every=0"], old)
    assert "finished after 1 steps" in out
    (again,) = (old / "outputs" / "runs").glob("*/metrics.jsonl")
    first, now = (json.loads(file.read_text().splitlines()[0]) for file in (old / "run" / "metrics.jsonl", again))
    assert now.pop("teacher/probe_prompts") == 8  # a stored config without the key gets today's probe of the teacher
    new = ("time/", "teacher/probe_", "eval/distinct_families")
    # the record is of another machine, whose sums round otherwise
    assert {k: v for k, v in now.items() if not k.startswith(new)} == pytest.approx(first, rel=1e-6)
