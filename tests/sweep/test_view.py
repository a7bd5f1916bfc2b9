"""By what a sweep's runs are grouped in MLflow, which charts its view has, and when it is sent."""

from __future__ import annotations

import json

import pytest

from rlrt.sweep import view
from rlrt.sweep.state import JobState
from rlrt.sweep.view import LiveView, groups_of, send_view, state_of

METRICS = ("eval/avg_at_8", "eval/avg_at_16", "reward/mean", "policy/entropy", "rollout/length_mean", "time/step_s")


def spec(method, seed=0, typed=(), **more):
    plain = {"seed": seed, "method": {"name": method}, "train": {"lr": 1e-3}, "tracking": {"uri": f"x{seed}"}}
    for key, value in more.items():
        section, _, name = key.partition("__")
        plain[section] = plain.get(section, {}) | {name: value}
    return {"overrides": [f"method={method}", f"seed={seed}", *typed], "plain": plain}


def names(groups):
    assert groups[0] == {"mode": "tag", "groupByData": "rlrt.method"}
    return [group["groupByData"] for group in groups[1:]]


def test_runs_that_differ_by_their_seed_alone_are_one_group():
    assert names(groups_of([spec(m, s) for m in ("rlrt", "grpo") for s in (0, 1)])) == []


def test_the_coefficient_that_was_typed_groups_and_what_only_goes_with_it_does_not():
    specs = [
        spec("rlrt", s, [f"method.lambda_init={v}"], method__lambda_init=v, method__also=2 * v)
        for v in (0.25, 0.75)
        for s in (0, 1)
    ]
    assert names(groups_of([*specs, spec("grpo")])) == ["method.lambda_init"]


def test_a_key_that_differs_between_methods_alone_groups_nothing():
    assert names(groups_of([spec("rlrt", method__gate="correct"), spec("grpo", method__gate="all")])) == []


def test_what_an_experiment_brings_with_it_groups_too():
    specs = [spec("rlrt", typed=[f"+experiment={name}"], train__lr=lr, train__warmup=w) for name, lr, w in
             (("a", 1, 1), ("b", 2, 1), ("c", 2, 2))]  # fmt: skip
    assert names(groups_of(specs)) == ["train.lr", "train.warmup"]


def test_models_are_called_by_their_options():
    specs = [spec("rlrt", typed=[f"model={name}"], model__path=f"/far/away/{name}") for name in ("tiny", "large")]
    assert names(groups_of(specs)) == ["rlrt.model"]


@pytest.mark.parametrize("broken", [{}, {"overrides": 3, "plain": [1]}, {"plain": {"method": "x"}}])
def test_a_damaged_job_is_a_group_of_its_own_at_most(broken):
    assert names(groups_of([spec("rlrt"), broken])) == []


def test_a_view_has_charts_of_metrics_that_are_there_alone():
    state = state_of([spec("rlrt")], METRICS)
    charts = [(chart["type"], chart["metricKey"]) for chart in state["compareRunCharts"]]
    assert charts == [
        ("LINE", "eval/avg_at_16"), ("LINE", "reward/mean"), ("LINE", "policy/entropy"), ("LINE", "rollout/length_mean"),
        ("BAR", "eval/avg_at_16"), ("BAR", "policy/entropy"), ("BAR", "rollout/length_mean"),
    ]  # fmt: skip
    sections = {section["name"]: section["display"] for section in state["compareRunSections"]}
    assert sections == {"Learning curves": True, "Last values": True, "eval": False, "time": False}
    assert "rlrt/gap_mean" in str(state_of([spec("rlrt")], [*METRICS, "rlrt/gap_mean"]))
    assert "eval/greedy" in str(state_of([spec("rlrt")], ["eval/greedy"]))
    assert state_of([spec("rlrt")], ["time/step_s"]) is None


class Parent:
    failed = False

    def __init__(self):
        self.views = []

    def view(self, name, state):
        self.views.append((name, state))


def job(folder, records, **more):
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(spec("rlrt", **more)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_a_sweep_that_runs_has_a_view_as_soon_as_it_has_a_metric(tmp_path, monkeypatch):
    monkeypatch.setattr(view, "EVERY_S", 0.0)
    parent, folder = Parent(), job(tmp_path / "s" / "a", [])
    live = LiveView(tmp_path / "s", parent)
    live.follow([folder], {}, lambda: [spec("rlrt")])
    assert parent.views == []
    with (folder / "metrics.jsonl").open("a") as record:
        record.write('{"step": 1, "reward/mean": 0.5}\n')
    for _ in range(3):
        live.follow([folder], {}, lambda: [spec("rlrt")])
    assert [name for name, _ in parent.views] == ["s"]  # once: nothing is new
    ended = JobState("finished", 1, 0, "", "", {"eval/avg_at_8": 0.5})
    live.follow([], {folder: ended}, lambda: [spec("rlrt")])
    assert "eval/avg_at_8" in str(parent.views[1:])
    monkeypatch.setattr(view, "EVERY_S", 3600.0)
    live.follow([], {folder: ended}, lambda: [spec("rlrt"), spec("grpo")])
    live.follow([], {folder: ended}, lambda: [spec("rlrt"), spec("grpo"), spec("sd")])
    assert len(parent.views) == 3  # the last one waits


def test_a_sweep_that_goes_on_keeps_the_charts_of_jobs_that_ended_before(tmp_path):
    parent, folder = Parent(), job(tmp_path / "s" / "a", [{"step": 1, "reward/mean": 0.5, "policy/entropy": 1.0}])
    ended = JobState("finished", 1, 0, "", "", {"eval/avg_at_8": 0.5})
    LiveView(tmp_path / "s", parent).follow([], {folder: ended}, lambda: [spec("rlrt")])
    ((_, state),) = parent.views
    assert {chart["metricKey"] for chart in state["compareRunCharts"]} == {
        "eval/avg_at_8",
        "reward/mean",
        "policy/entropy",
    }


def test_the_last_word_comes_from_the_folder(tmp_path):
    parent = Parent()
    send_view(tmp_path / "gone", parent)
    assert parent.views == []
    for value, name in ((0.25, "a"), (0.75, "b")):
        job(tmp_path / "s" / name, [{"step": 1, "reward/mean": 0.5}], method__lambda_init=value)
    (tmp_path / "s" / "b" / "summary.json").write_text(
        '{"state": "finished", "final": {"eval/avg_at_8": 0.5, "x": "no"}}'
    )
    send_view(tmp_path / "s", parent)
    ((name, state),) = parent.views
    assert name == "s"
    assert {chart["metricKey"] for chart in state["compareRunCharts"]} == {"eval/avg_at_8", "reward/mean"}
    assert names(state["groupBy"]["groupByKeys"]) == ["method.lambda_init"]
