"""``python -m rlrt.sft``: a run whose result starts another one."""

from __future__ import annotations

import json

import pytest

from tests.forked import forked

SMALL = ("train.steps=3", "train.eval_every=0", "eval.prompts=8", "eval.samples_per_prompt=2")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The folder of a supervised run with MLflow."""
    place = tmp_path_factory.mktemp("sft")
    done = forked("sft", [*SMALL, "tracking.uri=sqlite:///mlflow.db"], place)
    assert done.returncode == 0, done.stderr
    (folder,) = (place / "outputs" / "runs").iterdir()
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_its_folder_is_a_runs(taught):
    assert taught.name.startswith("method=sft,train.steps=3")
    assert json.loads((taught / "summary.json").read_text())["state"] == "finished"
    assert json.loads((taught / "manifest.json").read_text())["mlflow_run_id"]
    assert [line["step"] for line in lines(taught)] == [0, 1, 2, 3]
    rows = [json.loads(line) for line in (taught / "samples.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["correct"] and row["pieces"][-1] == "<eos>" for row in rows)


def test_it_goes_on_where_it_ended(taught):
    again = forked("sft", [*SMALL, "tracking.uri=sqlite:///mlflow.db"], taught.parents[2])
    assert "finished before" in again.stdout, again.stderr


def test_its_result_starts_a_run_that_samples(taught):
    """The start of that run is the end of this one: the same weights, evaluated with the same seeds."""
    more = ["method=grpo", f"model.path={taught}", *SMALL[1:], "train.steps=1", "tracking=none", "hydra.run.dir=next"]
    done = forked("run", more, taught.parents[2])
    assert done.returncode == 0, done.stderr
    start, end = (
        {k: v for k, v in line.items() if k.startswith("eval/")}
        for line in (lines(taught.parents[2] / "next")[0], lines(taught)[-1])
    )
    assert start == end
    assert start != {k: v for k, v in lines(taught)[0].items() if k.startswith("eval/")}


def test_another_method_is_refused(tmp_path):
    done = forked("sft", ["method=grpo"], tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: method=grpo: rlrt.sft learns by method=sft")
    assert not list(tmp_path.iterdir())
