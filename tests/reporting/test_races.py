"""A race in a report: its table, what it says of the rest of the page, its figure, and a file that is none."""

from __future__ import annotations

import json
import math

import pytest

from rlrt.reporting.page import read, write
from rlrt.reporting.races import RACE, read_race
from rlrt.statistics import narrowed
from tests.reporting.test_tables import write_job

GAPS = [0.05, 0.07, 0.06, 0.04, 0.055]


def record(**more):
    found = [(-math.inf, math.inf)]
    for n in range(1, len(GAPS) + 1):
        found.append(narrowed(found[-1], GAPS[:n], 0.025, 1.5))
    ends = [[end if math.isfinite(end) else None for end in interval] for interval in found[1:]]
    arm = {"name": "rlrt", "overrides": ["method=rlrt"], "said": "better", "reason": "", "runs": 7, "differences": GAPS}
    failed = {"name": "sd", "overrides": ["method=sd"], "said": "failed", "reason": "sd-1: <b>no GPU", "runs": 2}
    return {
        "declared": {
            "metric": "eval/avg_at_4",
            "alpha": 0.05,
            "margin": 0.02,
            "scale": 1.5,
            "arms": [],
            "first_seed": 0,
        },
        "max_seeds": 50,
        "baseline": {"name": "dapo", "runs": 7},
        "arms": [arm | {"intervals": ends}, failed | {"differences": [], "intervals": []}],
    } | more


def raced(tmp_path, **more):
    for seed in (0, 1):
        write_job(tmp_path, f"g{seed}", ["method=dapo", f"seed={seed}"], seed, "finished", 0.2)
        write_job(tmp_path, f"r{seed}", ["method=rlrt", f"seed={seed}"], seed, "finished", 0.26 + 0.01 * seed)
    (tmp_path / RACE).write_text(json.dumps(record(**more)))
    return tmp_path


def test_the_verdicts_come_first_and_everything_else_is_called_exploratory(tmp_path):
    report = read(raced(tmp_path), None)
    assert report.baseline == "dapo"  # the race's, not the usual one
    low, high = report.race.arms[0].intervals[-1]
    lines = report.markdown().splitlines()
    assert lines[0] == "- rlrt: better than dapo; avg@4 +0.055 (+0.016 to +0.094, valid at every look), 5 pairs."
    lines = lines[lines.index("") + 1 :]
    assert lines[0] == "| minus dapo | verdict | pairs | avg@4 | low | high | runs |"
    assert lines[2] == f"| rlrt | better | 5 | +0.0550 | {low:+.4f} | {high:+.4f} | 7 |"
    assert lines[3] == "| sd | failed | 0 | - | - | - | 2 |"
    assert 0 < low < 0.055 < high
    note = report.race.note()
    assert "Spent: 16 runs, 7 of the baseline, of at most 150." in note
    assert "Every other table and figure of this page is exploratory" in note
    files = {file.name for file in write(report)}
    assert {"race.csv", "race.svg", "race.png"} <= files
    page = (tmp_path / "report.html").read_text()
    assert page.index("<h2>The race's verdicts</h2>") < page.index("<h2>Means</h2>")
    assert note.split(":")[0] in page
    assert "sd-1: &lt;b&gt;no GPU" in page
    assert "<b>no" not in page


def test_the_figure_has_a_line_for_every_arm_with_an_interval(tmp_path):
    (picture,) = read_race(raced(tmp_path)).picture()
    (axes,) = picture.figure.axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["rlrt: better"]
    (mean,) = [line for line in axes.get_lines() if line.get_label() == "rlrt: better"]
    assert list(mean.get_ydata()) == pytest.approx([0.05, 0.06, 0.06, 0.055, 0.055])
    few = record()["arms"][0]
    short = few | {"differences": GAPS[:2], "intervals": few["intervals"][:2]}
    (tmp_path / RACE).write_text(json.dumps(record(arms=[short])))
    assert read_race(tmp_path).picture() == []


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "{}", json.dumps(record(arms=7)), json.dumps(record(arms=[{"name": "x"}])), json.dumps(record(baseline=None)),
     json.dumps(record()).replace("0.07", '"much"'), json.dumps(record()).replace("0.07, ", "")],
)  # fmt: skip
def test_a_file_that_is_no_race_is_left_out_with_a_warning(tmp_path, caplog, content):
    raced(tmp_path)
    (tmp_path / RACE).write_text(content)
    report = read(tmp_path, None)
    assert report.race is None
    assert "race.json: expected a race's declaration" in caplog.text
    assert report.markdown().startswith("| method |")


def test_p_values_of_the_main_metric_are_corrected_for_all_comparisons(tmp_path):
    from scipy.stats import ttest_rel

    scores = {"grpo": [0.2, 0.3, 0.25, 0.22], "rlrt": [0.3, 0.42, 0.33, 0.35], "sd": [0.22, 0.35, 0.24, 0.29]}
    for label, values in scores.items():
        for seed, avg in enumerate(values):
            write_job(tmp_path, f"{label}{seed}", [f"method={label}", f"seed={seed}"], seed, "finished", avg)
    rows = read(tmp_path, None).tables()["differences"].rows
    found = {row[0]: row[-1] for row in rows if row[1] == "avg@4"}
    p = {label: float(ttest_rel(scores[label], scores["grpo"]).pvalue) for label in ("rlrt", "sd")}
    assert p["rlrt"] < p["sd"]
    assert found == {"rlrt": f"{2 * p['rlrt']:.4f}", "sd": f"{max(2 * p['rlrt'], p['sd']):.4f}"}
    assert {row[-1] for row in rows if row[1] != "avg@4"} == {"exploratory"}
