"""Benchmarks that run without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_the_gpu_benchmark_says_when_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    words, root = [sys.executable, "-m", "benchmarks.gpu"], Path(__file__).parents[1]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 1
    assert done.stderr.strip() == "benchmarks.gpu: expected a CUDA GPU, found none here; run it where there is one."


def test_the_checks_of_a_card_pass_on_the_cpu_and_can_fail():
    from benchmarks.gpu import checks

    cpu = torch.device("cpu")
    for check in (checks.head, checks.gradient_of_the_head):
        assert checks.tried("x", lambda check=check: check(cpu)).passed
    assert [checks.memory(100, measured)[0] for measured in (85, 95, 105, 115)] == [False, True, True, False]
    broken = checks.tried("x", lambda: 1 / 0)
    assert (broken.passed, str(broken)) == (False, "FAIL      x: ZeroDivisionError: division by zero")


def test_the_first_cards_script_finds_its_files():
    from benchmarks.gpu import throughput

    assert throughput.CONFIG.is_file()
    assert throughput.SMALL_CONFIG.is_file()


def test_the_page_shows_what_the_estimate_says_of_every_model_and_machine():
    """A golden table: a change of the estimate changes docs/cluster.md, where a person sees it."""
    from benchmarks import fits

    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text().splitlines()
    missing = [row for row in fits.rows() if row not in page]
    assert not missing, "python -m benchmarks.fits prints what docs/cluster.md must show"
