"""Sweeps on a pretended SLURM that takes only some jobs at a time: what is taken runs, the rest follows."""

from __future__ import annotations

import json
import os

import pytest

from tests.forked import forked
from tests.helpers import ONE_STEP
from tests.sweep.cluster import Cluster
from tests.sweep.test_driver import only

SLURM = ("hydra/launcher=slurm", "tracking=none", "method=grpo", *ONE_STEP)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """(a cluster, a function that runs a sweep there): without pauses between looks."""
    import rlrt.sweep.driver
    from rlrt.sweep import launchers

    monkeypatch.setattr(rlrt.sweep.driver, "POLL_S", 0.02)
    monkeypatch.setattr(rlrt.sweep.driver, "PAUSE_S", 0.5)
    monkeypatch.setattr(launchers, "SLURM_POLL_S", 0.1)

    def begin(**more):
        cwd = tmp_path / "cwd"
        cwd.mkdir()
        cluster = Cluster(tmp_path / "bin", cwd, **more)

        def command(*words):
            path = f"{cluster.root}{os.pathsep}{os.environ['PATH']}"
            done = forked("run", ["-m", *SLURM, *words], cwd, timeout=120, PATH=path)
            return done.returncode, done.stdout + done.stderr

        return cluster, command

    return begin


def names(cwd, **having):
    """Seeds of the jobs whose job.json has an id."""
    specs = [(f.parent.name.split("-")[0], json.loads(f.read_text())) for f in only(cwd).glob("*/job.json")]
    return sorted(name for name, spec in specs if spec.get("slurm_id"))


def test_what_is_taken_is_submitted_and_the_same_command_submits_the_rest(sweep):
    cluster, command = sweep(limit=4)
    words = ("seed=0,1,2,3,4,5", "hydra.launcher.wait=false")
    code, output = command(*words)
    assert code == 0, output
    assert len(cluster.jobs()) == 4
    assert names(cluster.cwd) == [f"seed={n}" for n in range(4)]
    assert "2 jobs are not submitted yet; the same command submits them" in output
    assert "AssocMaxSubmitJobLimit" in output or "job submit limit" in output
    code, output = command(*words)  # nothing has ended: nothing is submitted twice
    assert (code, len(cluster.jobs())) == (0, 4), output
    cluster.set(limit=100)
    code, output = command(*words)
    assert (code, len(cluster.jobs())) == (0, 6), output
    assert "not submitted" not in output
    cluster.set(ends=6)
    code, output = command("seed=0,1,2,3,4,5")
    assert code == 0, output
    assert "6 finished" in output
    assert len(cluster.jobs()) == 6


@pytest.mark.parametrize(("jobs", "limit"), [(6, 4), (7, 1), (9, 8), (5, 5), (13, 3)])
def test_a_driver_that_stays_submits_the_rest_as_jobs_end(sweep, jobs, limit):
    cluster, command = sweep(limit=limit, ends=1)
    code, output = command(f"seed=range({jobs})")
    assert code == 0, output
    assert f"{jobs} finished" in output
    assert len(cluster.jobs()) == jobs  # each once
    assert len(cluster.calls("sbatch")) <= 6 * jobs


def test_array_parallelism_changes_nothing_about_it(sweep):
    cluster, command = sweep(limit=4)
    code, output = command("seed=range(6)", "hydra.launcher.array_parallelism=2", "hydra.launcher.wait=false")
    assert (code, len(cluster.jobs())) == (0, 4), output


def test_no_more_than_max_queued_are_with_slurm(sweep):
    cluster, command = sweep(limit=3, ends=1)  # it would refuse a fourth
    code, output = command("seed=range(8)", "hydra.launcher.max_queued=3")
    assert code == 0, output
    assert "8 finished" in output
    assert "WARNING" not in output
    assert len(cluster.jobs()) == 8


def test_max_queued_where_nobody_stays(sweep):
    cluster, command = sweep(limit=100)
    code, output = command("seed=range(8)", "hydra.launcher.max_queued=3", "hydra.launcher.wait=false")
    assert (code, len(cluster.jobs())) == (0, 3), output
    assert "5 jobs are not submitted yet" in output
    code, output = command("seed=range(8)", "hydra.launcher.max_queued=0")
    assert (code, output.count("error: hydra.launcher.max_queued: expected a number of at least 1, got 0")) == (2, 1)


def test_arrays_are_no_longer_than_the_cluster_takes(sweep):
    cluster, command = sweep(limit=100, array=4)
    code, output = command("seed=range(6)", "hydra.launcher.wait=false")
    assert (code, len(cluster.jobs()), len(cluster.calls("sbatch"))) == (0, 6, 2), output


def test_nothing_taken_is_one_sentence(sweep):
    cluster, command = sweep(limit=0, refusal="sbatch: error: invalid partition specified: nothing")
    code, output = command("seed=range(6)")
    assert code == 2, output
    assert output.count("error: hydra/launcher=slurm: sbatch refused the jobs: ") == 1
    assert "invalid partition" in output
    assert not cluster.jobs()


def test_an_answer_that_was_lost_submits_nothing_twice(sweep):
    """SLURM may have taken the jobs: they are cancelled by their name, and no smaller submission is tried."""
    cluster, command = sweep(
        limit=0, refusal="sbatch: error: Batch job submission failed: Socket timed out on send/recv"
    )
    code, output = command("seed=range(6)")
    assert code == 2, output
    assert len(cluster.calls("sbatch")) == 1
    (call,) = cluster.calls("scancel")
    assert call.startswith("scancel --name rlrt-")


def test_a_search_under_a_limit(sweep):
    cluster, command = sweep(limit=1, ends=1)
    code, output = command(
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=grid",
        "train.lr=1e-3,1e-4",
        "trial.seeds=[0,1]",
        "hydra.sweeper.n_jobs=2",
    )
    assert code == 1, output  # the pretended jobs have no final metric
    assert len(cluster.jobs()) == 4
    assert output.count("failed: there is no eval/avg_at_2") >= 2


def test_a_race_keeps_a_few_jobs_on_a_cluster_until_its_arms_are_told(sweep):
    """One job ends at a look, the others still wait: no seed waits for another, and never more than n_jobs are there."""
    cluster, command = sweep(limit=3, ends=1)
    cluster.set(final={"eval/avg_at_2": 0.5})
    words = ("hydra/sweeper=race", "train.lr=1e-3,1e-4", "hydra.sweeper.max_seeds=4", "hydra.sweeper.n_jobs=3")
    code, output = command(*words)
    assert code == 0, output
    assert "train.lr=0.0001: cannot tell after 4 pairs" in output
    assert names(cluster.cwd) == sorted(f"train.lr={lr},seed={n}" for lr in ("0.001", "0.0001") for n in range(4))
    assert len(cluster.jobs()) == 8
    assert "job submit limit" not in output  # three were never too many
    assert command(*words)[0] == 0
    assert len(cluster.jobs()) == 8
