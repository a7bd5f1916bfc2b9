"""Shapes in the methods' signatures are checked while testing, and only then."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores: also the processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # and no word about it in forks

with install_import_hook("rlrt.methods", "beartype.beartype"):
    import rlrt.methods

    for module in pkgutil.iter_modules(rlrt.methods.__path__):
        importlib.import_module(f"rlrt.methods.{module.name}")

import pytest
import torch
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile("rlrt", derandomize=True, deadline=None, max_examples=25)
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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store of MLflow without a run: making one takes MLflow seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "empty.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(tmp_cwd, empty_store):
    """A SQLite tracking URI of the test's own (absolute: MLflow caches its stores by URI), of an empty store."""
    shutil.copy(empty_store, tmp_cwd / "store.db")
    return f"sqlite:///{tmp_cwd / 'store.db'}"


@pytest.fixture
def new_uri(tmp_cwd):
    """The same where there is no file yet."""
    return f"sqlite:///{tmp_cwd / 'new.db'}"


@pytest.fixture
def held(tmp_path):
    """Makes ``tests.held.Hold``s, which hold nothing any more once the test is over."""
    from tests.held import Hold

    made = []

    def hold(steps, evaluations=1):
        made.append(Hold(tmp_path / f"hold{len(made)}", steps, evaluations))
        return made[-1]

    yield hold
    for one in made:
        one.release()
