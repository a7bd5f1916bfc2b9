"""The live page of a sweep that runs: it reads itself anew, and the last one does not."""

from __future__ import annotations

import json

from rlrt.reporting.page import Live, page, read
from tests.reporting.test_tables import three_seeds
from tests.sweep.test_driver import finish, only, start, wait_for

SMALL = ("train.steps=4", "train.prompts_per_step=2", "eval.prompts=4", "train.eval_every=0", "tracking=none")


def test_a_live_page_shows_how_jobs_stand_and_runs_no_script(tmp_path):
    three_seeds(tmp_path)
    report = read(tmp_path, None)
    text = page(report, [], Live(0.2, "<b>r0</b>  running  1/9"))
    assert '<meta http-equiv="refresh" content="1">' in text
    assert "<pre class='standing'>&lt;b&gt;r0&lt;/b&gt;  running  1/9</pre>" in text
    assert text.index("class='standing'") < text.index("class='verdicts'")
    assert "<script" not in text
    assert 'http-equiv="refresh"' not in page(report, [])


def test_the_page_is_live_until_the_sweep_ends(tmp_path, held):
    hold = held(steps=2)
    driver = start(tmp_path, "-m", "method=grpo,rlrt", *SMALL, *hold.keys)
    wait_for(lambda: len(hold.waiting()) == 2)
    watch = start(tmp_path, str(only(tmp_path)), "--watch", "--every", "0.5", module="rlrt.report")
    file = only(tmp_path) / "report.html"
    wait_for(lambda: file.is_file() and "refresh" in file.read_text())
    live = file.read_text()
    assert "2 running" in live
    assert "Learning curve: reward" in live  # of the two steps so far
    hold.release()
    code, output = finish(driver)
    assert code == 0, output
    code, output = finish(watch)
    assert code == 0, output
    assert output.count("live until the sweep ends: file://") == 1
    assert "2 running" not in file.read_text()
    assert "refresh" not in file.read_text()
    assert {json.loads(f.read_text())["state"] for f in only(tmp_path).glob("*/summary.json")} == {"finished"}
