"""Models and data for machines without a network."""

from __future__ import annotations

import time

import pytest

import rlrt.fetch as fetch_module
from rlrt.errors import UserError
from rlrt.fetch import FILES, fetch, fetch_model
from rlrt.paths import EMBEDDED
from rlrt.reporting import terminal
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


def test_without_a_terminal_a_download_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(terminal, "PRINTED_S", 0.0)
    monkeypatch.setattr(fetch_module, "LOOK_S", 0.05)
    blobs = tmp_path / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "before").write_bytes(bytes(1000))
    for total, line in ((4000, "name  [##########..........]  2.0 kB/4.0 kB"), (None, "name  1.0 kB more")):
        (blobs / "now.incomplete").unlink(missing_ok=True)
        with fetch_module.told("name", "models--owner--name", total):
            (blobs / "now.incomplete").write_bytes(bytes(1000))
            end, shown = time.monotonic() + 20, ""
            while line not in shown and time.monotonic() < end:
                time.sleep(0.05)
                shown += capsys.readouterr().out
        assert line in shown


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^model\.path: ") as caught:
        fetch(settings("model=qwen3_1.7b"))
    assert "\n" not in str(caught.value)
