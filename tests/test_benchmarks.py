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
