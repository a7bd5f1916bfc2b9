"""Every declared study opens with its question and its cost, and composes to as many jobs as it says."""

from __future__ import annotations

import re

import pytest

from rlrt.hydra_setup import SWEEPS
from rlrt.sweep.command import configs

STUDIES = sorted(p.stem for p in (SWEEPS / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_says_its_question_and_cost(study):
    text = (SWEEPS / "sweep" / f"{study}.yaml").read_text()
    assert "# Question: " in text
    cost = re.search(r"# Cost: (?:[^\n]*= )?(\d+) jobs", text)
    assert cost is not None
    shown = configs([f"+sweep={study}"])
    assert len(shown) == int(cost[1])
    assert len({config for _, config in shown}) == len(shown)
    assert all("path: embedded" in config for _, config in shown)
