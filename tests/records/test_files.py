"""The doors through which files of a folder are read and written."""

from __future__ import annotations

import json
import os
import socket

import pytest

from rlrt.errors import UserError
from rlrt.records.files import (
    DEEPEST,
    Unreadable,
    files_below,
    is_file,
    json_object,
    named_below,
    nearest_existing,
    opened,
    own_folder,
    parsed_json,
    read_json,
    replace_text,
    resolved,
    tensors_of,
    why_unreadable,
)
from rlrt.records.jsonlines import LONGEST, JsonLines, lines_of


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "socket", "device"])
def test_only_regular_files_are_opened(tmp_path, monkeypatch, kind):
    file = tmp_path / "x"
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "link":
            (tmp_path / "real").write_text("{}")
            file.symlink_to("real")
        case "socket":
            monkeypatch.chdir(tmp_path)  # a socket's path is short
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("x")
        case "device":
            file = type(file)("/dev/zero")
    with pytest.raises(Unreadable, match=f"{file} cannot be read: expected a file, found a {kind}"):
        opened(file)
    assert read_json(file) == {}
    assert not is_file(file)
    assert str(file) in why_unreadable(file)


def test_what_is_not_there_is_no_complaint(tmp_path):
    assert json_object(tmp_path / "x") == {}
    (tmp_path / "file").write_text("")
    assert json_object(tmp_path / "file" / "x") == {}
    assert why_unreadable(tmp_path / "x") == ""


def test_depth_numbers_and_half_characters():
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert parsed_json(deep) == json.loads(deep)
    for text in (f"[{deep}]", "9" * 19, "-" + "9" * 300, "[" * 10**6):
        with pytest.raises(ValueError, match="expected"):
            parsed_json(text)
    assert parsed_json('{"\\ud800": ["\\udfff", "\\ud83d\\ude42"]}') == {"\ufffd": ["\ufffd", "🙂"]}
    assert parsed_json('"9999999999999999999"') == "9" * 19  # a text may have as many digits as it likes
    assert parsed_json("0." + "1" * 40) == pytest.approx(1 / 9)


def test_a_line_longer_than_any_rollout_is_left_out_without_being_kept(tmp_path):
    file = tmp_path / "metrics.jsonl"
    with file.open("wb") as out:
        out.write(b'{"step":1}\n{"step":2,"x":"')
        out.seek(LONGEST + 100, 1)
        out.write(b'"}\n{"step":3}\n')
    assert [row["step"] for row in JsonLines(file).read()] == [1, 3]
    with opened(file) as handle:
        assert max(map(len, lines_of(handle))) < 100
    assert [row["step"] for row in JsonLines(file).last(1000)] == [3]


def test_writing_follows_no_link(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("summary.json", "metrics.jsonl", "metrics.tmp"):
        (tmp_path / name).symlink_to(mine)
    replace_text(tmp_path / "summary.json", "{}")
    record = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="symbolic"):
        record.append([{"step": 1}])
    with pytest.raises(
        UserError, match=r"metrics\.jsonl cannot be read: .* a link.*; remove it, or give another folder"
    ):
        record.cut_after(1)
    assert mine.read_text() == "mine"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "report").symlink_to("elsewhere")
    with pytest.raises(UserError, match="is a link"):
        own_folder(tmp_path / "report")


def test_damaged_lines_are_left_out_with_a_word(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step":1}\n5\n{"step":null}\n{"step":2}\n{"step":9}\n{"st')
    JsonLines(file).cut_after(2)
    assert file.read_text() == '{"step":1}\n{"step":2}\n'
    assert "2 lines that could not be read were left out" in caplog.text


def test_what_lies_below_a_folder(tmp_path):
    """Links to folders are not followed, a pipe is no file, and a folder may lie deeper than Python recurses."""
    (tmp_path / "b").mkdir()
    for name in ("a", "b/c"):
        (tmp_path / name).write_text("x")
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    assert [str(p.relative_to(tmp_path)) for p in files_below(tmp_path)] == ["a", "b/c", "link"]
    assert files_below(tmp_path, 6) == files_below(tmp_path)
    with pytest.raises(Unreadable, match=f"{tmp_path} cannot be read: expected at most 5 files and folders below it"):
        files_below(tmp_path, 5)
    deep = tmp_path
    for _ in range(1200):
        (deep := deep / "d").mkdir()
    (deep / "c").write_text("x")
    assert named_below(tmp_path, "c") == [tmp_path / "b" / "c", deep / "c"]
    (deep / "c").unlink()
    os.removedirs(deep)  # pytest's own cleaning recurses too


def test_a_link_to_itself_is_a_path_like_any_other(tmp_path):
    """Path.resolve raises a RuntimeError for it."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "there").symlink_to(tmp_path)
    assert resolved(tmp_path / "loop" / "x") == tmp_path.resolve() / "loop" / "x"
    assert resolved(tmp_path / "there" / "y") == tmp_path.resolve() / "y"
    assert nearest_existing(tmp_path / "loop" / "x") == tmp_path.resolve()


HEADERS = {
    "larger than any": (2**62).to_bytes(8, "little") + b"{}",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "no shape": (10).to_bytes(8, "little") + b'{"w": {}  }',
    "a shape of texts": (22).to_bytes(8, "little") + b'{"w": {"shape": ["x"]}}',
    "no text": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "900,000 brackets": (900_000).to_bytes(8, "little") + b"[" * 900_000,
    "nothing": b"",
    "a pipe": b"",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_of_safetensors_is_data_too(tmp_path, header):
    file = tmp_path / "x.safetensors"
    file.write_bytes(HEADERS[header]) if header != "a pipe" else os.mkfifo(file)
    with pytest.raises(Unreadable, match=r"x\.safetensors cannot be read as safetensors \(.{4,}\)\.$"):
        tensors_of(file)


def test_a_folder_under_a_files_name_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(UserError, match=r"summary\.json is a folder, and rlrt writes a file there; remove it"):
        replace_text(tmp_path / "summary.json", "{}")
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
