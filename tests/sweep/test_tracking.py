"""Parent and children in MLflow, and what it missed."""

from __future__ import annotations

import json

import pytest

from rlrt.errors import UserError
from rlrt.execution.tracking import replay
from rlrt.sweep import worker
from rlrt.sweep.command import sweep
from rlrt.sweep.launchers import LocalLauncher
from rlrt.ui import page_of
from tests.commands.test_run import SMALL
from tests.forked import submit_forks
from tests.records.test_mlflow import client, go
from tests.records.test_mlflow_views import as_mlflow_reads


@pytest.fixture
def forks(monkeypatch):
    """Jobs are forks: what MLflow has of them is no matter of submitit."""
    monkeypatch.setattr(LocalLauncher, "submit", submit_forks)


def test_a_sweep_is_a_parent_with_its_jobs(tmp_cwd, uri, forks):
    typed = ["method=grpo", "seed=0,1", *SMALL, f"tracking.uri={uri}", f"hydra.sweep.dir={tmp_cwd}/s"]
    assert sweep(typed) == 0
    parent = json.loads((tmp_cwd / "s" / "sweep.json").read_text())["mlflow_run_id"]
    assert client(uri).get_run(parent).info.status == "FINISHED"
    runs = client(uri).search_runs(["1"], f"tags.mlflow.parentRunId = '{parent}'")
    assert {r.data.tags["rlrt.seed"] for r in runs} == {"0", "1"}
    assert {r.data.tags["rlrt.sweep"] for r in runs} == {"s"}
    assert {r.data.tags["rlrt.state"] for r in runs} == {"finished"}
    ((name, value),) = views(uri).items()
    key = json.loads((tmp_cwd / "s" / "sweep.json").read_text())["key"]
    assert name == f"mlflow.sharedViewState.rlrt-{key}"
    assert json.loads(value)["name"] == "s"
    assert f"tags.`mlflow.parentRunId` = '{parent}'" in json.dumps(state_of_view(value))
    drawn = {chart["metricKey"] for chart in state_of_view(value)["compareRunCharts"]}
    assert {"reward/mean", "policy/entropy", "rollout/length_mean"} <= drawn <= set(runs[0].data.metrics)
    (every, view) = page_of(uri, "rlrt")
    assert view == page_of(uri, "rlrt", tmp_cwd / "s")[1] == (view[0], "s")
    assert view[0].startswith(f"{every.partition('?')[0]}?viewStateShareKey=rlrt-{key}&")
    assert sweep(typed) == 0  # again: nothing new
    assert len(client(uri).search_runs(["1"])) == 3
    assert views(uri) == {name: value}


def views(uri):
    tags = client(uri).get_experiment("1").tags
    return {name: value for name, value in tags.items() if name.startswith("mlflow.sharedViewState.")}


def state_of_view(value):
    return as_mlflow_reads(json.loads(value)["state"])


def test_a_sweep_that_a_store_has_no_view_of(tmp_cwd, uri):
    (tmp_cwd / "s").mkdir()
    for note in ('{"key": "0123456789abcdef"}', '{"key": "../x"}', "[]"):
        (tmp_cwd / "s" / "sweep.json").write_text(note)
        with pytest.raises(UserError, match=r"has no view of .*s in the experiment rlrt"):
            page_of(uri, "rlrt", tmp_cwd / "s")


def test_what_mlflow_missed_is_replayed_once(tmp_cwd, uri):
    go(tmp_cwd / "run", "tracking.uri=http://127.0.0.1:9")
    assert json.loads((tmp_cwd / "run" / "summary.json").read_text())["mlflow_complete"] is False
    for _ in range(2):
        assert replay(tmp_cwd / "run", uri)
    (run,) = client(uri).search_runs(["1"])
    assert run.info.status == "FINISHED"
    history = client(uri).get_metric_history(run.info.run_id, "reward/mean")
    assert [m.step for m in history] == [1, 2, 3]
    start = client(uri).get_metric_history(run.info.run_id, "eval/avg_at_8")
    assert [m.step for m in start] == [0, 3]
    assert json.loads((tmp_cwd / "run" / "summary.json").read_text())["mlflow_complete"] is True


def test_sqlite_is_left_to_the_driver_on_slurm(tmp_cwd, new_uri, monkeypatch):
    uri = new_uri
    typed = ["method=grpo", "seed=0", *SMALL, f"tracking.uri={uri}", f"hydra.sweep.dir={tmp_cwd}/s"]
    from rlrt.config.compose import composer
    from rlrt.sweep.jobs import job_of

    with composer() as compose:
        job = job_of(tmp_cwd / "s", tuple(typed[:-1]), compose)
    job.write(tags={"rlrt.sweep": "s"})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert worker.run(str(job.folder)) == "finished"
    assert not (tmp_cwd / "new.db").exists()
    summary = json.loads((job.folder / "summary.json").read_text())
    assert (summary["state"], summary["mlflow_complete"], summary["slurm_job_id"]) == ("finished", False, "7")
    assert replay(job.folder)
    (run,) = client(uri).search_runs(["1"])
    assert run.data.tags["rlrt.sweep"] == "s"


def test_secrets_of_a_job_are_for_its_owner_alone(tmp_cwd):
    from rlrt.sweep.plan import Job

    job = Job(tmp_cwd / "j", (), {"tracking": {"uri": "http://u:pw@h"}}, {}, "x")
    job.write()
    job.write(retries=1)
    assert (tmp_cwd / "j" / "job.json").stat().st_mode & 0o077 == 0


def test_a_searchs_best_parameters_are_in_the_parent_and_its_trials_below(tmp_cwd, uri, forks):
    typed = [
        "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "method=rlrt", "method.lambda_init=0.25,0.75", *SMALL,
        f"tracking.uri={uri}", f"hydra.sweep.dir={tmp_cwd}/s", "hydra.sweeper.objective=reward/mean",
    ]  # fmt: skip
    assert sweep(typed) == 0
    parent = client(uri).get_run(json.loads((tmp_cwd / "s" / "sweep.json").read_text())["mlflow_run_id"])
    best = json.loads((tmp_cwd / "s" / "best.json").read_text())["best"][0]
    assert parent.data.tags["rlrt.best.method.lambda_init"] == str(best["params"]["method.lambda_init"])
    assert parent.data.tags["rlrt.trials.complete"] == "2"
    assert parent.data.metrics["best/reward_mean"] == best["values"]["reward/mean"]
    runs = client(uri).search_runs(["1"], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {r.data.tags["rlrt.trial"] for r in runs} == {"0", "1"}
    assert {r.data.params["method.lambda_init"] for r in runs} == {"0.25", "0.75"}


def test_a_later_life_without_mlflow_is_not_taken_for_complete(tmp_cwd, uri, monkeypatch):
    summary = tmp_cwd / "run" / "summary.json"
    go(tmp_cwd / "run", f"tracking.uri={uri}", stop_after=1)
    assert json.loads(summary.read_text())["mlflow_complete"] is True
    import rlrt.training.loop

    monkeypatch.setattr(rlrt.training.loop, "learn", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go(tmp_cwd / "run", "tracking.uri=http://127.0.0.1:9")
    assert json.loads(summary.read_text())["mlflow_complete"] is False


def test_a_masked_password_is_asked_for(tmp_cwd, uri):
    go(tmp_cwd / "run", "tracking.uri=http://me:secret@127.0.0.1:9")
    assert "secret" not in (tmp_cwd / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match="recorded without the password of its URI; give the URI as --uri"):
        replay(tmp_cwd / "run")
    assert replay(tmp_cwd / "run", uri)
