from __future__ import annotations

import json
import math

from rlrt.records.jsonlines import JsonLines


def test_lines_are_strict_json(tmp_path):
    record = JsonLines(tmp_path / "m.jsonl")
    record.append([{"step": 1, "a": math.nan, "b": [math.inf, 1.0], "text": "ü<script>\x00"}])
    line = (tmp_path / "m.jsonl").read_text(encoding="utf-8")
    assert json.loads(line, parse_constant=lambda c: 1 / 0)["a"] == "nan"
    assert record.read()[0]["text"] == "ü<script>\x00"


def test_a_torn_last_line_is_left_out_and_cut(tmp_path):
    record = JsonLines(tmp_path / "m.jsonl")
    record.append([{"step": s} for s in range(4)])
    with record.path.open("a") as file:
        file.write('{"step": 4, "rew')
    assert [o["step"] for o in record.read()] == [0, 1, 2, 3]
    record.cut_after(2)
    record.append([{"step": 3}])
    assert [o["step"] for o in record.read()] == [0, 1, 2, 3]


def test_cutting_nothing_makes_an_empty_file(tmp_path):
    record = JsonLines(tmp_path / "m.jsonl")
    record.cut_after(-1)
    record.sync()
    assert record.read() == []
