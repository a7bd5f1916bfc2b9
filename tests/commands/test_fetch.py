"""Models and data for machines without a network."""

from __future__ import annotations

import pytest

from rlrt.errors import UserError
from rlrt.fetch import FILES, fetch, fetch_model
from rlrt.paths import EMBEDDED
from tests.helpers import settings
from tests.hub import gsm8k_folder, model_folder
from tests.model.test_files import COMMIT, hub


def test_what_is_here_is_named(tmp_path):
    model, data = model_folder(tmp_path / "model", "instruct"), gsm8k_folder(tmp_path / "gsm8k")
    lines = fetch(settings("model=hf", f"model.path={model}", "data=gsm8k", f"data.path={data}"))
    assert lines == [f"model: {model}", "data: 20 training and 5 held-out problems"]
    assert fetch_model("embedded", None) == EMBEDDED


def test_a_hub_model_is_fetched_at_its_commit_and_without_code(tmp_path, monkeypatch):
    name = hub(tmp_path, monkeypatch, model_folder(tmp_path / "model", "instruct"))
    asked = []
    snapshot = tmp_path / "cache" / "models--owner--name" / "snapshots" / COMMIT

    def download(path, revision, allow_patterns):
        asked.append((path, revision, tuple(allow_patterns)))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch_model(name, "main") == snapshot
    assert asked == [(name, COMMIT, FILES)]
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in FILES)


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^model\.path: ") as caught:
        fetch(settings("model=qwen3_1.7b"))
    assert "\n" not in str(caught.value)
