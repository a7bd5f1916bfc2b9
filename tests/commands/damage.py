"""Ways in which a file of a run's folder may be another thing than rlrt wrote."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], object]


def cleared(file: Path) -> Path:
    """The path of a file, with nothing there."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
    return file


def huge(file: Path) -> None:
    """Three gigabytes of zeros on one line, which take no room on the disk."""
    with file.open("wb") as handle:
        handle.truncate(3_000_000_000)


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Nine levels of aliases: 400 million texts in a kilobyte."""
IRREGULAR: dict[str, Damage] = {
    "a pipe": os.mkfifo,
    "a folder": lambda file: (file / "inside").mkdir(parents=True),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to an endless device": lambda file: file.symlink_to("/dev/zero"),
    "a link to a file elsewhere": lambda file: file.symlink_to("/etc/hostname"),
    "a link to nothing": lambda file: file.symlink_to(file.parent / "nowhere"),
}
"""Not a file."""
CONTENT: dict[str, Damage] = {
    "three gigabytes": huge,
    "bytes that are no text": lambda file: file.write_bytes(bytes(range(256)) * 40),
    "another encoding": lambda file: file.write_bytes('{"state": "é"}'.encode("latin-1")),
    "a hundred thousand brackets": lambda file: file.write_text("[" * 100_000),
    "objects that never end": lambda file: file.write_text('{"a":' * 20_000 + "1" + "}" * 20_000),
    "900 levels": lambda file: file.write_text('{"step":1,"final":' + '{"a":' * 900 + "1" + "}" * 901),
    "a list": lambda file: file.write_text("[1, 2]\n"),
    "a number": lambda file: file.write_text("5\n"),
    "a number of 4,000 digits": lambda file: file.write_text('{"step": ' + "9" * 4000 + "}\n"),
    "aliases": lambda file: file.write_text(BOMB),
    "half a file": lambda file: file.write_bytes(b'{"step": 1, "state": "fini'),
}
"""A file, but not what should be in it."""
KINDS: dict[str, object] = {
    "numbers as texts": {"step": "x", "seed": "x", "changed": "abc", "final": {"eval/greedy": "x"}, "plain": "x"},
    "texts as numbers": {"state": 5, "overrides": [5, None], "error": 7, "identity": 1, "choices": {"model": 3}},
    "lists as mappings": {"final": [], "plain": [], "tags": [], "choices": [], "declared": [], "hardware": []},
    "nothing": dict.fromkeys(
        ("state", "step", "final", "seed", "overrides", "plain", "changed", "choices", "identity")
    ),
    "no numbers": {"step": float("nan"), "changed": float("inf"), "final": {"eval/greedy": float("-inf")}, "seed": 0},
    "mappings as texts": {"state": {"a": 1}, "error": {"b": []}, "overrides": {"c": 1}, "seed": {}, "slurm_id": {}},
    "other names": {"final": {"eval/avg_at_x": 1, "eval/pass_at_0": 1, "eval/pass_at_²": 1, "eval/avg_at_": 1, "": 2}},
    "truth": {"step": True, "final": {"eval/greedy": True}, "seed": False, "retries": True},
}
"""JSON with values of other kinds; merged into the file's own."""
RECORDS: dict[str, str] = {
    "no step": '{"reward/mean": 1}\n',
    "a step that is none": '{"step": "x", "reward/mean": 1}\n{"step": null}\n{"step": 1.5}\n{"step": true}\n',
    "no object": '5\n[1]\nnull\n"x"\n',
    "other kinds": '{"step": 1, "reward/mean": "x", "time/step_s": [], "tokens": [], "pieces": 5, "prompt": {}}\n',
    "other kinds inside": '{"step": 1, "tokens": {"gap": 5, "weight": ["x", null, {}]}, "pieces": [null, 5], "sample": "x"}\n',
    "no numbers": '{"step": 1, "reward/mean": NaN, "time/step_s": Infinity, "tokens": {"gap": [1e400, NaN]}}\n',
    "one key twice": '{"step": 1, "step": "x"}\n{"step": 1, "reward/mean": 0.5, "reward/mean": []}\n',
    "half characters": '{"step": 1, "prompt": "\\ud800", "pieces": ["\\udfff"], "context": "\\udc80"}\n',
    "large numbers": '{"step": 1, "time/step_s": 1e308, "reward/mean": -1e308, "tokens": {"gap": [1e308]}, "pieces": ["a"]}\n',
}
"""Lines of a record."""


def put(file: Path, damage: Damage) -> None:
    """Put damage in a file's place."""
    damage(cleared(file))


def merged(file: Path, values: object) -> None:
    """Change values of a JSON file."""
    before = json.loads(file.read_text()) if file.is_file() else {}
    assert isinstance(values, dict)
    file.write_text(json.dumps(before | values))
