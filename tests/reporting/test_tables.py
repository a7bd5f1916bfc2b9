"""Means, intervals and differences of a report against hand-worked numbers and scipy; what is left out is named."""

from __future__ import annotations

import csv
import io
import json

import numpy
import pytest
from scipy import stats

from rlrt.errors import UserError
from rlrt.reporting.jobs import read_jobs
from rlrt.reporting.page import page, read, write
from rlrt.reporting.tables import Table
from rlrt.statistics import interquartile_mean, mean_and_halfwidth, probability_of_improvement, seeds_needed


def write_job(sweep, name, overrides, seed, state, avg, changed=1.0, error="", lam=None, eps=None):
    folder = sweep / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"overrides": overrides, "seed": seed}))
    final = {"eval/greedy": 0.5, "eval/avg_at_4": avg, "eval/pass_at_1": avg, "eval/pass_at_4": 0.9}
    final |= {"eval/distinct_correct": 1.0, "eval/entropy": 0.1, "eval/length_mean": 12.0}
    summary = {"state": state, "final": final, "changed": changed, "error": error}
    (folder / "summary.json").write_text(json.dumps(summary))
    if lam is not None:
        method = f"{{lambda_init: {lam}, epsilon_w: {eps}, gate: correct, direction: reversed}}"
        (folder / "config.yaml").write_text(f"method: {method}\n")
    rows = [
        {"step": s, "reward/mean": 0.1 * s, "policy/entropy": 0.3, "time/step_s": 2.0, "rollout/tokens": 100.0}
        for s in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def three_seeds(sweep):
    for seed, (a, b) in enumerate([(0.1, 0.4), (0.2, 0.4), (0.3, 0.7)]):
        write_job(sweep, f"g{seed}", ["method=grpo", f"seed={seed}", "train.steps=9"], seed, "finished", a)
        write_job(sweep, f"r{seed}", ["method=rlrt", f"seed={seed}", "train.steps=9"], seed, "finished", b)


def test_report_over_seeds(tmp_path):
    three_seeds(tmp_path)
    write_job(tmp_path, "r9", ["method=rlrt", "seed=9", "train.steps=9"], 9, "failed", 0.0, error="CUDA is gone")
    write_job(tmp_path, "g0-older-code", ["method=grpo", "seed=0", "train.steps=9"], 0, "finished", 0.9, changed=-1.0)
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "job.json").write_text(
        json.dumps({"overrides": ["method=rlrt", "seed=7", "train.steps=9"], "plain": {"seed": 7}})
    )
    text = read(tmp_path, "grpo").markdown()
    # mean .2, std .1, t = 4.3027, half-width .248; paired: .3 .2 .4 -> .3 with the same half-width
    assert "| grpo | 3 | 0.500 ± 0.000 | 0.200 ± 0.248 |" in text
    assert "| rlrt | avg@4 | 3 | +0.300 ± 0.248 | 1.00 | 4 |" in text
    assert "- r9: failed (CUDA is gone)" in text
    assert "- q: queued" in text
    assert (
        "Left out, since a newer run has the same settings and seed (other code or versions):\n- g0-older-code" in text
    )
    assert read(tmp_path, None).baseline == "grpo"
    with pytest.raises(UserError, match="Did you mean 'grpo'"):
        read(tmp_path, "grop")
    with pytest.raises(UserError, match="found none"):
        read(tmp_path / "g0" / "nothing", None)


def test_statistics_against_scipy_and_by_hand():
    values = [0.1, 0.5, 0.4, 0.9, 0.3, 0.35, 0.45, 0.2]
    assert interquartile_mean(values) == pytest.approx((0.3 + 0.35 + 0.4 + 0.45) / 4, abs=1e-15)
    assert interquartile_mean([0.1, 0.2, 0.6]) == pytest.approx(0.3, abs=1e-15)  # three: nothing is left out
    mean, half = mean_and_halfwidth(values)
    low, high = stats.t.interval(0.95, 7, loc=numpy.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-12)
    assert probability_of_improvement([1.0, 2.0], [0.0, 2.0]) == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    mine, theirs = [0.3, 0.6, 0.8, 0.1], [0.2, 0.5, 0.4]
    u = stats.mannwhitneyu(mine, theirs).statistic
    assert probability_of_improvement(mine, theirs) == pytest.approx(u / 12, abs=1e-15)


def test_seeds_needed_by_simulation():
    """A difference of one standard deviation: ten pairs give 80 % power (textbooks say 10), and a simulation agrees."""
    gaps = [0.0, 2.0]  # mean 1, standard deviation 1.414
    needed = seeds_needed(gaps)
    assert needed is not None
    generator = numpy.random.default_rng(0)
    found = [stats.ttest_1samp(generator.normal(1, 2**0.5, needed), 0).pvalue < 0.05 for _ in range(2000)]
    assert 0.77 <= numpy.mean(found) <= 0.85
    fewer = [stats.ttest_1samp(generator.normal(1, 2**0.5, needed - 2), 0).pvalue < 0.05 for _ in range(2000)]
    assert numpy.mean(fewer) < 0.80
    one = (2.0 - 1.0) / 2**0.5
    assert seeds_needed([1 - one, 1 + one]) == 10
    assert seeds_needed([0.5]) is None
    assert seeds_needed([0.5, 0.5]) is None
    assert seeds_needed([-1e-9, 1.1e-9 + 1e-6, -1e-6]) is None  # no number of seeds that anyone could run


def test_intervals_over_seeds_cover_what_they_say():
    """Student's t over five seeds of a known law covers its mean 95 % of the time; a percentile bootstrap would not."""
    generator = numpy.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        mean, half = mean_and_halfwidth([float(v) for v in generator.normal(0.5, 0.1, 5)])
        covered += mean - half <= 0.5 <= mean + half
    assert 0.93 <= covered / 1000 <= 0.97


def test_a_table_in_every_form_says_the_same():
    made = Table(["a&b", "x"], [["<script>|", "1 ± 2"], ["50 %_", '"q"']])
    assert made.markdown().splitlines()[2] == "| \\<script\\>\\| | 1 ± 2 |"
    assert list(csv.reader(io.StringIO(made.csv()))) == [["a&b", "x"], *made.rows]
    assert "a\\&b & x \\\\" in made.latex()
    assert "50 \\%\\_" in made.latex()
    assert "&lt;script&gt;|" in made.html()
    assert "<script>" not in made.html()


def test_files_are_written_and_a_second_time_are_the_same(tmp_path):
    three_seeds(tmp_path)
    files = write(read(tmp_path, None))
    names = {f.name for f in files}
    assert {"report.html", "report.md", "means.csv", "means.tex", "differences.md", "all.csv", "pass_at_k.svg", "pass_at_k.png",
            "curve_reward.svg"} <= names  # fmt: skip
    before = {f: f.read_bytes() for f in files}
    assert {f: f.read_bytes() for f in write(read(tmp_path, None))} == before
    rows = list(csv.DictReader((tmp_path / "report" / "all.csv").read_text().splitlines()))
    mine = next(r for r in rows if (r["method"], r["metric"]) == ("rlrt", "eval/avg_at_4"))
    assert float(mine["mean"]) == pytest.approx(0.5)
    assert float(mine["low"]) == pytest.approx(0.5 - 4.302652729911275 * 0.1, abs=1e-9)
    text = (tmp_path / "report.html").read_text()
    assert "src=" not in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "https://" not in text


def test_an_ablation_has_a_map_and_curves(tmp_path):
    for lam in (0.0, 0.5, 1.0):
        for eps in (0.2, 1.0):
            for seed in (0, 1):
                typed = [f"method.lambda_init={lam}", f"method.epsilon_w={eps}", f"seed={seed}"]
                write_job(tmp_path, f"{lam}-{eps}-{seed}", typed, seed, "finished", lam * eps, lam=lam, eps=eps)
    names = {f.name for f in write(read(tmp_path, None))}
    assert {"ablation_map.svg", "ablation_curves.svg"} <= names
    assert read(tmp_path, None).baseline is None


def test_three_hundred_jobs_are_told_in_eight_lines_a_figure(tmp_path):
    for i in range(75):
        for seed in range(4):
            write_job(tmp_path, f"j{i}-{seed}", [f"method.lambda_init={i}", f"seed={seed}"], seed, "finished", i / 100)
    report = read(tmp_path, "method.lambda_init=3")
    text = page(report, [])
    assert "Figures show 8 of 75 settings (baseline, best, worst): method.lambda_init=3, method.lambda_init=74" in text
    assert len(report.tables()["means"].rows) == 75


def test_a_sweep_that_has_only_begun_and_damaged_papers(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "job.json").write_text(json.dumps({"overrides": ["method=rlrt", "seed=0"]}))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("{broken")
    write(read(tmp_path, None))
    text = (tmp_path / "report.md").read_text()
    assert "- a: queued" in text
    assert f"- b: {tmp_path}/b/manifest.json cannot be read as JSON" in text
    assert next(j.state for j in read_jobs(tmp_path)) == "queued"
