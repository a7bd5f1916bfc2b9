"""What a report says first: a verdict in words for each comparison, every failure counted."""

from __future__ import annotations

import pytest
from scipy import stats

from rlrt.reporting.page import page, read
from tests.reporting.test_tables import write_job


def sweep_of(folder, **values):
    """Finished runs by method and seed; None: a failed one."""
    for method, of_seeds in values.items():
        for seed, value in enumerate(of_seeds):
            state = "failed" if value is None else "finished"
            write_job(folder, f"{method}{seed}", [f"method={method}", f"seed={seed}"], seed, state, value or 0.0)
    return folder


def test_better_worse_and_what_cannot_be_told(tmp_path):
    base = [0.50, 0.52, 0.48, 0.51]
    better, worse, same = [0.60, 0.63, 0.59, 0.60], [0.30, 0.45, 0.30, 0.40], [0.52, 0.50, 0.47, 0.53]
    sweep_of(tmp_path, grpo=base, rlrt=better, sd=worse, entropy=same)
    said = {line.split(":")[0]: line for line in read(tmp_path, None).verdicts()}
    assert said.keys() == {"rlrt", "sd", "entropy"}
    p = {
        name: float(stats.ttest_rel(v, base).pvalue) for name, v in (("rlrt", better), ("sd", worse), ("entropy", same))
    }
    assert p["rlrt"] < p["sd"] < p["entropy"]  # so Holm multiplies by 3, 2 and 1
    assert said["rlrt"] == "rlrt: better than grpo; avg@4 +0.102 (+0.087 to +0.118), 4 paired seeds, p < 0.001."
    assert 3 * p["rlrt"] < 0.001
    assert said["sd"].startswith("sd: worse than grpo; avg@4 -0.140 (-")
    assert f"p {2 * p['sd']:.3f}" in said["sd"]
    assert said["entropy"].startswith("entropy: cannot be told from grpo; avg@4 +0.003 (-")
    assert "seeds would tell a difference of this size." in said["entropy"]


@pytest.mark.parametrize(
    ("rlrt", "said"),
    [
        (
            [0.6, None],
            "rlrt: avg@4 +0.100 beside grpo with one seed, which tells nothing; 1 of its 2 runs did not finish and count",
        ),
        (
            [None, None],
            "rlrt: no seed that grpo has finished as well; 2 of its 2 runs did not finish and count nowhere.",
        ),
        ([0.75, 0.75], "rlrt: avg@4 +0.250 beside grpo in each of 2 paired seeds, so that its spread is not known."),
    ],
)
def test_what_failed_or_has_no_spread_is_said(tmp_path, rlrt, said):
    sweep_of(tmp_path, grpo=[0.5, 0.5], rlrt=rlrt)
    assert read(tmp_path, None).verdicts()[0].startswith(said)


def test_a_baseline_that_failed_is_named(tmp_path):
    sweep_of(tmp_path, grpo=[0.5, None], rlrt=[0.6, 0.7])
    assert read(tmp_path, None).verdicts()[1] == "grpo, the baseline; 1 of its 2 runs did not finish and count nowhere."


def test_the_page_begins_with_the_verdicts_and_escapes_them(tmp_path):
    sweep_of(tmp_path, grpo=[0.5, 0.6], rlrt=[0.6, 0.8])
    write_job(tmp_path, "x0", ["method=<b>", "seed=0"], 0, "finished", 0.9)
    report = read(tmp_path, None)
    text = page(report, [])
    assert text.index("class='verdicts'") < text.index("<h2>Means</h2>")
    assert "&lt;b&gt;: avg@4 +0.400 beside grpo with one seed, which tells nothing." in text
    assert report.markdown().startswith("- ")


def test_without_a_baseline_nothing_is_said(tmp_path):
    sweep_of(tmp_path, rlrt=[0.5], sd=[0.6])
    assert read(tmp_path, None).verdicts() == []


def test_what_has_not_ended_yet_is_no_failure(tmp_path):
    sweep_of(tmp_path, grpo=[0.5, 0.6], rlrt=[0.6, None])
    for seed, state in ((2, "running"), (3, "queued")):
        for method in ("grpo", "rlrt"):
            run = write_job(tmp_path, f"{method}{seed}", [f"method={method}", f"seed={seed}"], seed, state, 0.0)
            if state == "queued":
                (run / "summary.json").unlink()
    assert read(tmp_path, None).verdicts() == [
        "rlrt: avg@4 +0.100 beside grpo with one seed, which tells nothing; 2 of its 4 runs have not ended; 1 of its 4 runs "
        "did not finish and count nowhere.",
        "grpo, the baseline; 2 of its 4 runs have not ended.",
    ]
