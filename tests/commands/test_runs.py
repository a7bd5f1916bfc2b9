"""``rlrt.runs``: which runs are found, kept, sorted and shown, what is damaged, and what differs between two."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from rlrt import runs
from rlrt.records.stored_config import config_text
from tests.commands.damage import CONTENT, IRREGULAR, KINDS, merged, put

CONFIG = {"seed": 0, "threads": 1, "train": {"steps": 9, "lr": 0.001, "save_every": 50}, "eval": {"suites": {}}}
CONFIG |= {
    "model": {"path": "m", "lora_targets": ["q", "v"], "lora": None, "thinking": True},
    "method": {"name": "grpo"},
}
SWEEP = "method=grpo,rlrt,seed=0,1,train.lr=1e-3-12345678"
SECRET = "sqlite://me:hunter2hunter2@host/x"


def record(steps, **values):
    """Lines of a record in which every step has the same numbers but its time."""
    rows = [{"step": s, "reward/mean": 0.5, **values, "time/step_s": s / 7} for s in range(1, steps + 1)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_at(folder, changed, state="finished", method="grpo", final=(), sections=(), steps=9, **manifest):
    """A run's folder as it is left; ``final`` and ``sections`` are pairs of a metric, or of a dotted key, and a value."""
    folder.mkdir(parents=True)
    plain = json.loads(json.dumps(CONFIG))
    for key, value in sections:
        *inner, last = key.split(".")
        place = plain
        for name in inner:
            place = place[name]
        place[last] = value
    about = {
        "choices": {"method": method, "model": "tiny", "data": "countdown"},
        "identity": folder.name[-12:],
        "seed": 0,
    }
    (folder / "manifest.json").write_text(json.dumps(about | manifest))
    (folder / "summary.json").write_text(
        json.dumps({"state": state, "step": steps, "changed": changed, "final": dict(final)})
    )
    (folder / "config.yaml").write_text(config_text(plain))
    (folder / "metrics.jsonl").write_text(record(steps))
    return folder


@pytest.fixture
def outputs(tmp_cwd):
    """Two single runs, a supervised start among them, and a sweep of which one job waits."""
    folder = tmp_cwd / "outputs"
    run_at(folder / "runs" / "start", 100.0, method="sft", final=[("reward/mean", 1.0)])
    run_at(folder / "runs" / "method=rlrt-bbbbbbbbbbbb", 200.0, "interrupted", "rlrt", steps=4)
    best = [("eval/avg_at_8", 0.75), ("eval/avg_at_2", 0.7), ("eval/greedy", 0.5), ("reward/mean", 0.25)]
    done = run_at(folder / "sweeps" / SWEEP / "seed=0-cccccccccccc", 300.0, final=best, sections=[("train.lr", 0.01)])
    (done / "job.json").write_text("{}")
    waiting = folder / "sweeps" / SWEEP / "seed=1-dddddddddddd"
    waiting.mkdir()
    plain = CONFIG | {"seed": 1, "tracking": {"uri": SECRET}}
    spec = {"plain": plain, "choices": {"method": "grpo", "model": "tiny", "data": "countdown"}, "identity": "d" * 12}
    (waiting / "job.json").write_text(json.dumps(spec))
    os.utime(waiting / "job.json", (400, 400))
    return folder


@pytest.fixture
def told(monkeypatch, capsys):
    """What the command says when it is given some arguments: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlrt.runs", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runs.main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


def names(text):
    """The names in a table, from above."""
    return [line.split()[0] for line in text.split("\n")[2:] if "  " in line]


def test_every_run_is_shown_once_and_the_newest_first(outputs, told):
    copy = outputs / "mlartifacts" / "0a" / "artifacts"  # as MLflow has what a run sent it
    run_at(copy, 900.0)
    run_at(outputs / "runs" / "start.old-1", 900.0)
    (outputs / "runs" / "again").symlink_to(outputs / "runs" / "start")
    code, text, warned = told()
    assert (code, warned) == (0, "")
    short = ["..12345678/seed=1-dddddddddddd", "..12345678/seed=0-cccccccccccc", "method=rlrt-bbbbbbbbbbbb", "start"]
    assert names(text) == short
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["name", "method", "state", "step", "avg@8", "reward", "when"]
    assert rows[2][1:6] == ["grpo", "queued", "0/9", "-", "-"]
    assert rows[3][1:6] == ["grpo", "finished", "9", "0.750", "0.250"]
    assert rows[4][1:6] == ["rlrt", "interrupted", "4/9", "-", "0.500"]
    assert text.endswith("4 runs; all of them: model=tiny, data=countdown\n")
    assert names(told(outputs / "sweeps")[1]) == short[:2]
    assert names(told("12345678")[1]) == short[:2]  # by the end of its name
    assert "1 run\n" in told(outputs / "runs" / "start")[1]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["method=rlrt"], "b"),
        (["train.lr=1e-2"], "c"),
        (["train.lr=0.001", "seed=0"], "bt"),
        (["seed=1"], "d"),
        (["model.thinking=true"], "dcbt"),
        (["model.thinking=1"], ""),
        (["seed=false"], ""),
        (["model.lora=null"], "dcbt"),
        (["model.lora_targets=[q,v]", "+method=sft"], "t"),
        (["state=queued"], "d"),
        (["eval.suites={}"], "dcbt"),
        (["model.path='m'"], "dcbt"),
    ],
)
def test_runs_are_kept_by_keys_as_they_are_typed(outputs, told, typed, found):
    code, text, _ = told(*(word for one in typed for word in ("--where", one)))
    assert code == 0
    assert "".join(name[-1] for name in names(text)) == found
    assert f"{len(found)} of 4 runs" in text if len(found) < 4 else "4 runs" in text


@pytest.mark.parametrize(
    ("typed", "says", "hint"),
    [
        (["--where", "train.lrr=1"], "--where train.lrr: none of these runs has such a key", "Did you mean 'train.lr'?"),
        (["--where", "train.lr"], "--where 'train.lr': expected KEY=VALUE, as for rlrt.run.", ""),
        (["--sort", "eval/greed"], "--sort eval/greed: none of these runs has such a key", "Did you mean 'eval/greedy'?"),
        (["--columns", "seed,method.lam"], "--columns method.lam: none of these runs", ""),
        (["nowhere"], "nowhere: expected the folder of runs, or of one run, found none there.", ""),
        (["--diff", "start", "seed"], "--diff seed: expected one run's folder, name or identity, found none.", ""),
        (["--diff", "start", "outputs"], "outputs: expected a run (manifest.json), found none.", ""),
    ],
)  # fmt: skip
def test_what_no_run_has_is_one_sentence(outputs, told, typed, says, hint):
    code, text, error = told(*typed)
    assert (code, text) == (2, "")
    assert error.startswith(f"error: {says}")
    assert error.count("\n") == 1
    assert hint in error


def test_runs_without_a_value_come_last_either_way(outputs, told):
    run_at(outputs / "runs" / "worse", 50.0, final=[("eval/avg_at_8", 0.25)])
    for by in ("avg@8", "avg@k", "eval/avg_at_8"):
        assert [n[-1] for n in names(told("--sort", by)[1])][:2] == ["e", "c"]
        assert [n[-1] for n in names(told("--sort", by, "--descending")[1])][:2] == ["c", "e"]
    _, text, _ = told("--sort", "greedy", "--columns", "seed")
    assert text.split("\n")[0].split() == ["name", "seed", "greedy"]
    assert text.split("\n")[2].split()[1:] == ["0", "0.500"]


def test_the_newest_of_those_that_match(outputs, told):
    code, text, _ = told("--where", "method=grpo", "--last", 1)
    assert (code, names(text)) == (0, ["..12345678/seed=1-dddddddddddd"])


def test_json_has_whole_names_plain_values_and_no_secret(outputs, told):
    code, text, _ = told("--json", "--columns", "train.lr,tracking.uri")
    found = json.loads(text)
    assert code == 0
    assert "hunter2" not in text
    assert found[0]["name"] == f"{SWEEP}/seed=1-dddddddddddd"
    assert [one["columns"]["train.lr"] for one in found] == [0.001, 0.01, 0.001, 0.001]
    assert found[1] | {"when": 0, "columns": 0} == {
        "folder": f"outputs/sweeps/{SWEEP}/seed=0-cccccccccccc", "name": f"{SWEEP}/seed=0-cccccccccccc", "sweep": SWEEP,
        "method": "grpo", "model": "tiny", "data": "countdown", "state": "finished", "step": 9, "avg@k": 0.75, "k": 8,
        "reward": 0.25, "when": 0, "identity": "c" * 12, "columns": 0,
        "final": {"eval/avg_at_8": 0.75, "eval/avg_at_2": 0.7, "eval/greedy": 0.5, "reward/mean": 0.25},
    }  # fmt: skip


@pytest.mark.parametrize("damage", {**IRREGULAR, **CONTENT})
@pytest.mark.parametrize("file", ["manifest.json", "summary.json", "config.yaml", "metrics.jsonl"])
def test_a_damaged_run_is_left_out_with_a_warning(outputs, told, file, damage):
    put(outputs / "runs" / "method=rlrt-bbbbbbbbbbbb" / file, {**IRREGULAR, **CONTENT}[damage])
    code, text, warned = told("--where", "train.steps=9", "--columns", "train.lr")
    assert code == 0
    assert [n[-1] for n in names(text)][-1] == "t"
    if file != "metrics.jsonl":  # of a record that is none of ours no line is read
        assert warned.count("warning: left out: ") == 1
        assert f"method=rlrt-bbbbbbbbbbbb/{file} cannot be read" in warned


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["manifest.json", "summary.json"])
def test_values_of_another_kind(outputs, told, file, kind):
    merged(outputs / "runs" / "start" / file, KINDS[kind])
    for arguments in (("--columns", "train.lr,identity"), ("--json",), ("--sort", "when")):
        code, text, _ = told(*arguments)
        assert code == 0
        assert "bbbbbbbbbbbb" in text  # the others are shown
    assert told("--diff", outputs / "runs" / "start", outputs / "runs" / "method=rlrt-bbbbbbbbbbbb")[0] == 0


def test_names_do_nothing_to_a_terminal(outputs, told):
    name = "\x1b]0;title\x07\u202eab\ncd"
    left = run_at(outputs / "runs" / name, 500.0, method="\x1b[2J", final=[("\x1b[31mx", 1.0)], identity="\x1b[1m")
    for arguments in ((), ("--columns", "method,identity"), ("--json",), ("--diff", left, outputs / "runs" / "start")):
        code, text, _ = told(*arguments)
        assert code == 0
        assert not any(c in text for c in "\x1b\x07\u202e")


def test_many_damaged_runs_are_counted(outputs, told):
    for number in range(8):
        (run_at(outputs / "runs" / f"bad{number}", 1.0) / "summary.json").write_text("{")
    code, text, warned = told()
    assert (code, len(names(text)), warned.count("\n")) == (0, 4, 6)
    assert warned.endswith("3 more that cannot be read\n")


def two(place, **right):
    """Two runs that differ in what is given."""
    return run_at(place / "left", 1.0), run_at(place / "right", 2.0, **right)


def test_two_runs_side_by_side(tmp_path, told):
    old, new = (
        {"code": c * 64, "contents": {"model.path": "a" * 64}, "sources": {}, "versions": {"torch": "2"}} for c in "ef"
    )
    left = run_at(tmp_path / "left", 1.0, final=[("eval/greedy", 0.5), ("eval/x", "nan")], ingredients=old, git_diff="")
    changes = [("train.lr", 0.01), ("threads", 2), ("model.path", "elsewhere"), ("model.lora", "null")]
    right = run_at(
        tmp_path / "right", 2.0, final=[("eval/greedy", 0.625)], sections=changes, ingredients=new, git_diff="+x\n"
    )
    (right / "metrics.jsonl").write_text(
        record(4) + record(9, **{"a/b": 0.1}).split("\n", 4)[4].replace("0.5", "0.25", 1)
    )
    code, text, _ = told("--diff", left, right)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert code == 0
    assert lines[:2] == [f"left: {left} (finished, step 9)", f"right: {right} (finished, step 9)"]
    for line in (
        "train.lr 0.001 0.01",
        "threads 1 2 not in the identity",
        "model.path m elsewhere the same content",
        'model.lora null "null"',
        f"code: rlrt {'e' * 12} {'f' * 12}",
        "eval/greedy 0.5000 0.6250 +0.1250",
        "eval/x nan - -",
        "records: equal to the bit up to step 4; step 5 is the first that differs, in 1 metric",
        "reward/mean 0.5 0.25",
        "only right records: a/b",
    ):
        assert line in lines, text
    assert any(line.startswith("code: uncommitted changes none 1 lines, ") for line in lines)
    assert "equal: library, model or data" in lines


def test_two_runs_that_are_equal_to_the_bit(tmp_path, told):
    left, right = two(tmp_path)
    (right / "metrics.jsonl").write_text(record(12))
    code, text, _ = told("--diff", left, right)
    assert code == 0
    assert "config: equal (11 keys)" in text
    assert "records: equal to the bit up to step 9, in all that both record\nonly right has steps: 3, 10 to 12" in text
    assert "time/" not in text
    assert "model or data  not recorded  not recorded" in text  # as of a run that was recorded before it was noted


def test_a_last_digit_is_a_difference(tmp_path, told):
    left, right = two(tmp_path)
    (right / "metrics.jsonl").write_text(record(9).replace("0.5", "0.50000000000000011"))
    assert "0.5  0.5000000000000001\n" in told("--diff", left, right)[1]


def test_a_run_is_named_by_its_identity_and_two_of_that_are_refused(outputs, told):
    code, text, _ = told("--diff", "bbbbbbbb", f"{SWEEP}/seed=0-cccccccccccc")
    assert code == 0
    assert text.startswith("left:  outputs/runs/method=rlrt-bbbbbbbbbbbb (interrupted, step 4)\nright: outputs/sweeps/")
    run_at(outputs / "runs" / "other-bbbbbbbbbbbb", 1.0)
    code, _, error = told("--diff", "bbbbbbbb", "start")
    assert code == 2
    assert (
        "expected one run's folder, name or identity, found outputs/runs/method=rlrt-bbbbbbbbbbbb, outputs/runs/other"
        in error
    )


def test_a_folder_without_runs_is_one_sentence(tmp_cwd, told):
    assert told()[0] == 2
    Path("outputs").mkdir()
    code, _, error = told()
    assert (code, error) == (2, "error: expected runs in outputs, found none; give the folder that holds them.\n")
