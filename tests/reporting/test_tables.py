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
from rlrt.statistics import (
    interquartile_mean,
    mean_and_halfwidth,
    probability_of_improvement,
    seeds_needed,
    t_test_power,
)


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
    assert "| rlrt | avg@4 | 3 | +0.300 ± 0.248 | 1.00 | 4 | 0.0351 |" in text
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
    assert interquartile_mean([0.1, 0.2, 0.6]) is None  # of three nothing would be left out: it would be the mean
    assert interquartile_mean([0.1, 0.2, 0.3, 0.9]) == pytest.approx(0.25, abs=1e-15)
    assert interquartile_mean([]) is None
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


@pytest.mark.parametrize(("gaps", "needed"), [([5, 6, 7], 3), ([7, 8, 9], 3), ([6.2, 7.2, 8.2], 3), ([-5, -6, -7], 3)])
def test_seeds_needed_of_a_large_effect(gaps, needed):
    """scipy's noncentral t is NaN here; with two seeds the critical t is 12.7, and a simulation finds too little power."""
    assert seeds_needed(gaps) == needed
    draws = numpy.random.default_rng(1).normal(abs(sum(gaps)) / 3, 1.0, (20_000, 2))
    t = draws.mean(1) / (draws.std(1, ddof=1) / 2**0.5)
    assert t_test_power(abs(sum(gaps)) / 3 * 2**0.5, 12.706204736, 1) == pytest.approx(
        float(numpy.mean(abs(t) > 12.706204736)), abs=0.012
    )


def test_power_is_a_number_everywhere_and_agrees_with_scipy_where_scipy_has_one():
    compared = 0
    for df in (1, 2, 4, 9, 30, 400, 9999):
        critical = float(stats.t.ppf(0.975, df))
        before = 0.0
        for shift in (0.0, 0.01, 0.5, 1.0, 2.8, 5.0, 8.2, 9.7, 14.0, 37.0, 400.0, 1e6):
            power = t_test_power(shift, critical, df)
            assert before - 1e-9 <= power <= 1.0  # more shift, more power
            before = power
            exact = 1 - stats.nct.cdf(critical, df, shift) + stats.nct.cdf(-critical, df, shift) if shift < 8 else None
            if exact is not None and not numpy.isnan(exact):
                assert power == pytest.approx(float(exact), abs=1e-7)
                compared += 1
        assert before == pytest.approx(1.0, abs=1e-9)
    assert compared > 20
    assert t_test_power(0.0, 2.0, 5) == pytest.approx(2 * float(stats.t.sf(2.0, 5)), abs=1e-10)


def configured(sweep, label, overrides, seed, avg, **sections):
    """A finished run with a config, given as sections of keys."""
    folder = write_job(sweep, f"{label}{seed}", [*overrides, f"seed={seed}"], seed, "finished", avg)
    (folder / "config.yaml").write_text(json.dumps(sections))


def test_a_comparison_of_more_than_the_methods_is_named(tmp_path):
    """GRPO and SDPO as shipped differ in the learning rate; the keys of the methods and what was typed are no fault."""
    method = {"scale_by_std": False, "policy_loss": "clip"}
    train = {"lr": 1e-6, "clip_high": 0.28, "steps": 9, "kl_coef": None}
    for seed in (0, 1):
        configured(tmp_path, "g", ["method=grpo", "train.clip_high=0.28"], seed, 0.2, method=method, train=train)
        configured(tmp_path, "s", ["method=sd"], seed, 0.3, method={"scale_by_std": True}, train=train | {"lr": 1e-5})
        configured(
            tmp_path,
            "n",
            ["method=rloo", "train.clip_high=0.3"],
            seed,
            0.3,
            method={"own": 1},
            train=train | {"clip_high": 0.3},
        )
    report = read(tmp_path, "grpo train.clip_high=0.28")
    (sentence,) = report.confounds()
    assert sentence == (
        "sd and grpo train.clip_high=0.28 differ in more than what was typed: method.scale_by_std true and false; train.lr "
        "1e-05 and 1e-06. Type the same value for both to compare the methods alone."
    )
    assert f"Warning: {sentence}" in report.markdown()
    assert sentence in page(report, [])
    assert read(tmp_path, "sd").confounds()[0].startswith("grpo train.clip_high=0.28 and sd differ")


def test_one_seed_has_no_share_of_pairs(tmp_path):
    write_job(tmp_path, "g0", ["method=grpo"], 0, "finished", 0.2)
    write_job(tmp_path, "r0", ["method=rlrt"], 0, "finished", 0.4)
    tables = read(tmp_path, "grpo").tables()
    assert {row[4] for row in tables["differences"].rows} == {"-"}
    assert {cell for row in tables["interquartile"].rows for cell in row[2:]} == {"-"}


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
