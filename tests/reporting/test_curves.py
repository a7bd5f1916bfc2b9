"""Learning curves: read once, smoothed run by run, and a box on the page that needs no script."""

from __future__ import annotations

import json

import pytest

from rlrt.reporting.curves import pictures_of, read_series, smoothed
from rlrt.reporting.jobs import Job, read_jobs
from rlrt.reporting.page import page, read
from tests.reporting.test_tables import write_job


def sweep_of(folder, steps):
    """Two seeds whose reward jumps between 0 and 1, one step against the other."""
    for seed in (0, 1):
        run = write_job(folder, f"r{seed}", ["method=rlrt", f"seed={seed}"], seed, "finished", 0.5)
        rows = [{"step": s, "reward/mean": float((s + seed) % 2), "policy/entropy": 0.3} for s in range(1, steps + 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_smoothed_value_is_the_mean_of_the_last_ones():
    assert list(smoothed([(1, 3.0), (2, 6.0), (5, 0.0), (6, 9.0)], 3)) == [(1, 3.0), (2, 4.5), (5, 3.0), (6, 5.0)]
    assert list(smoothed([(1, 3.0), (2, 6.0)], 1)) == [(1, 3.0), (2, 6.0)]


def test_runs_are_smoothed_before_they_are_averaged(tmp_path):
    jobs = read_jobs(sweep_of(tmp_path, 6))
    raw = read_series(jobs, ["rlrt"], ["reward/mean"])["reward/mean"]["rlrt"]
    smooth = read_series(jobs, ["rlrt"], ["reward/mean"], 2)["reward/mean"]["rlrt"]
    assert raw == {s: [float(s % 2), float((s + 1) % 2)] for s in range(1, 7)}
    assert smooth == {1: [1.0, 0.0]} | {s: [0.5, 0.5] for s in range(2, 7)}


def test_each_record_is_read_once_for_all_raw_curves_and_once_for_the_smoothed(tmp_path, monkeypatch):
    jobs, read_of = read_jobs(sweep_of(tmp_path, 60)), Job.records
    reads = []
    monkeypatch.setattr(Job, "records", lambda job: reads.append(job.name) or read_of(job))
    names = [p.name for p in pictures_of(jobs, None)]
    assert {"curve_reward", "curve_reward_smooth", "curve_entropy", "curve_entropy_smooth"} <= set(names)
    assert sorted(reads) == ["r0", "r0", "r1", "r1"]


@pytest.mark.parametrize(("steps", "window", "box"), [(60, None, True), (6, None, False), (60, 1, False), (6, 3, True)])
def test_the_page_has_a_box_where_something_is_smoothed(tmp_path, steps, window, box):
    report = read(sweep_of(tmp_path, steps), None)
    pictures = pictures_of(report.jobs, None, window)
    text = page(report, pictures)
    assert ("id='smooth'" in text) == box
    assert text.count("<figure class='raw'>") == text.count("<figure class='smooth'>") == (2 if box else 0)
    assert "<script" not in text
    of = [p.caption for p in pictures if p.variant == "smooth"]
    assert all(f"mean of the last {window or steps // 20} values" in caption for caption in of)
