"""A sweep as DataFrames: rows, what varied, what the report's means have; and the same as CSV and parquet."""

from __future__ import annotations

import json

import pandas
import pytest

import rlrt
from rlrt.errors import UserError
from rlrt.reporting.page import read, write
from rlrt.reporting.results import files
from rlrt.reporting.tables import inert, tex
from tests.reporting.test_tables import three_seeds, write_job


def sweep_of_all_kinds(sweep):
    three_seeds(sweep)
    write_job(sweep, "r9", ["method=rlrt", "seed=9", "train.lr=1e-3", "train.steps=9"], 9, "failed", 0.0, error="=cmd")
    write_job(sweep, "g0-older-code", ["method=grpo", "seed=0", "train.steps=9"], 0, "finished", 0.9, changed=-1.0)
    for name, text in (("torn", "["), ("list", "[1]")):
        (sweep / name).mkdir()
        (sweep / name / "manifest.json").write_text(text)
    (sweep / "queued").mkdir()
    spec = {"overrides": ["method=rlrt", "seed=7", "train.steps=9"], "plain": {"seed": 7}}
    (sweep / "queued" / "job.json").write_text(json.dumps(spec))


def test_a_row_for_each_job_begun_or_not_readable_or_not(tmp_path):
    sweep_of_all_kinds(tmp_path)
    frame = rlrt.results(tmp_path).set_index("job")
    assert list(frame.columns[:7]) == ["label", "seed", "state", "in_means", "error", "method", "train.lr"]
    assert len(frame) == 6 + 2 + 2 + 1
    assert frame.loc["r1", ["seed", "state", "in_means", "method", "eval/avg_at_4"]].tolist() == [
        1, "finished", True, "rlrt", 0.4,
    ]  # fmt: skip
    assert frame.loc["r9", ["state", "in_means", "train.lr", "error"]].tolist() == ["failed", False, 1e-3, "=cmd"]
    assert frame.loc["queued", ["seed", "state", "method"]].tolist() == [7, "queued", "rlrt"]
    assert pandas.isna(frame.loc["queued", "eval/avg_at_4"])
    assert "torn/manifest.json cannot be read as JSON" in frame.loc["torn", "state"]
    assert not frame.loc[["torn", "list", "g0-older-code"], "in_means"].any()
    assert "train.steps" not in frame  # all jobs agree
    with pytest.raises(UserError, match="expected the folder of a sweep"):
        rlrt.results(tmp_path / "nothing")


def test_the_means_of_the_report_are_those_of_the_frame(tmp_path):
    sweep_of_all_kinds(tmp_path)
    frame = rlrt.results(tmp_path)
    means = frame[frame.in_means].groupby("label")["eval/avg_at_4"].agg(["mean", "size"])
    table = {row[0]: row[1:] for row in read(tmp_path, None).tables()["means"].rows}
    for label, (mean, size) in means.iterrows():
        assert table[label][0] == str(int(size))
        assert table[label][2].startswith(f"{mean:.3f}")


def test_curves_have_every_step_and_pass_over_lines_that_are_none(tmp_path):
    folder = write_job(tmp_path, "a", ["method=grpo", "seed=0"], 0, "running", 0.0)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('5\n{"reward/mean": 1}\n{"step": 3, "x": "text", "y": true, "policy/kl": 0.5}\n{"step": ')
    frame = rlrt.curves(tmp_path)
    assert frame.step.tolist() == [1, 2, 3]
    assert frame["policy/kl"].tolist()[2] == 0.5
    assert not {"x", "y"} & set(frame.columns)


def test_files_read_back_and_no_cell_is_a_formula(tmp_path):
    sweep_of_all_kinds(tmp_path)
    write(read(tmp_path, None))
    frame = rlrt.results(tmp_path)
    stored = pandas.read_parquet(tmp_path / "report" / "jobs.parquet")
    assert stored["eval/avg_at_4"].tolist()[:3] == frame["eval/avg_at_4"].tolist()[:3]
    assert stored["error"].tolist() == frame["error"].tolist()
    text = pandas.read_csv(tmp_path / "report" / "jobs.csv")
    assert "'=cmd" in set(text["error"])
    assert len(pandas.read_parquet(tmp_path / "report" / "curves.parquet")) == 2 * 8
    assert files({}, tmp_path) == []


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("+data.size=5", "'+data.size=5"), ("=HYPERLINK(1)", "'=HYPERLINK(1)"), ("@x", "'@x"), (" =1", "' =1"),
        ("\t=1", "'\t=1"), ("-0.300", "-0.300"), ("+0.300 ± 0.248", "+0.300 ± 0.248"), ("-", "-"), ("grpo", "grpo"), ("", ""),
    ],
)  # fmt: skip
def test_cells_that_a_spreadsheet_would_run(cell, written):
    assert inert(cell) == written


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("[1pt]", "{}[1pt]"),
        ("*", "{}*"),
        ("a\nb", "a b"),
        ("a_b", "a\\_b"),
        ("\\input{x}", "\\textbackslash{}input\\{x\\}"),
    ],
)
def test_cells_that_latex_would_read_as_more_than_text(cell, written):
    assert tex(cell) == written
