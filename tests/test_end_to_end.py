"""Every method trains the embedded model for 20 steps, and GRPO's reward rises."""

from __future__ import annotations

import json
import math
import re

import pytest

from rlrt.execution.execute import execute
from tests.conftest import ROOT
from tests.helpers import METHODS, settings

SMALL = ("train.steps=20", "train.prompts_per_step=8", "train.eval_every=0", "eval.prompts=64")


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps(method, tmp_path):
    made = settings(f"method={method}", *SMALL, "tracking=none")
    assert execute(made, tmp_path / "run", lambda line: None, lambda: False)["state"] == "finished"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(21))
    assert all(math.isfinite(v) for line in lines for v in line.values())
    start, end = lines[0]["eval/avg_at_8"], lines[-1]["eval/avg_at_8"]
    assert end > start + 0.05, f"avg@8 {start} -> {end}"
    if method == "grpo":
        first, last = (sum(x["reward/mean"] for x in part) / 5 for part in (lines[1:6], lines[-5:]))
        assert last > first + 0.1, f"reward {first} -> {last}"
    if method in ("rlrt", "rlsd"):
        assert all(line["teacher/share"] > 0.1 for line in lines[1:])
        assert all(line["rlrt/gap_abs_mean"] > 0.02 for line in lines[1:])
    page = (ROOT / "docs" / "metrics.md").read_text()
    for name in {n for line in lines for n in line if n != "step"}:
        assert f"`{re.sub(r'_at_[0-9]+$', '_at_N', name)}`" in page, f"docs/metrics.md does not explain {name}"
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples
    assert all(len(s["token_ids"]) == len(s["tokens"]["advantage"]) == s["length"] for s in samples)
