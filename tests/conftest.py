"""Shapes in the methods' signatures are checked while testing, and only then."""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

with install_import_hook("rlrt.methods", "beartype.beartype"):
    import rlrt.methods

    for module in pkgutil.iter_modules(rlrt.methods.__path__):
        importlib.import_module(f"rlrt.methods.{module.name}")

import pytest
import torch
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile("rlrt", derandomize=True, deadline=None, max_examples=40)
hypothesis_settings.load_profile("rlrt")

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Numbers are compared to the bit: always on one thread."""
    torch.set_num_threads(1)


@pytest.fixture
def tmp_cwd(tmp_path, monkeypatch):
    """A working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def uri(tmp_cwd):
    """A SQLite tracking URI of the test's own (absolute: MLflow caches its stores by URI)."""
    return f"sqlite:///{tmp_cwd / 'store.db'}"
