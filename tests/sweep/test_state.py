from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rlrt.records.lease import LeaseTaken, hold_lease, holder, is_held
from rlrt.sweep.state import Follower, job_state, last_records, planned_steps, seconds_left
from rlrt.sweep.table import Row, Whole, overview, rate, shortened, table

HOLDER = """
import sys, time
from pathlib import Path
from rlrt.records.lease import hold_lease
with hold_lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lease")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert is_held(tmp_path / "lease")
    assert holder(tmp_path / "lease")["pid"] == process.pid
    with pytest.raises(LeaseTaken) as caught, hold_lease(tmp_path / "lease"):
        pass
    assert caught.value.holder["pid"] == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not is_held(tmp_path / "lease")
    with hold_lease(tmp_path / "lease"):
        assert holder(tmp_path / "lease")["pid"] == os.getpid()


def write(folder, summary=None, **spec):
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps(spec))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize(
    ("summary", "spec", "name", "again"),
    [
        (None, {}, "queued", True),
        ({"state": "finished", "step": 9}, {}, "finished", False),
        ({"state": "pruned"}, {}, "pruned", False),
        ({"state": "interrupted", "step": 3}, {"retries": 9}, "interrupted", True),
        ({"state": "running"}, {}, "lost", True),
        ({"state": "running"}, {"retries": 2}, "lost", False),
        ({"state": "failed", "failure": "error", "error": "x"}, {"retries": 1}, "failed", True),
        ({"state": "failed", "failure": "error"}, {"retries": 2}, "failed", False),
        ({"state": "failed", "failure": "config"}, {}, "failed", False),
        ({"state": "failed", "failure": "memory"}, {}, "failed", False),
    ],
)
def test_states_and_what_may_run_again(tmp_path, summary, spec, name, again):
    state = job_state(write(tmp_path / "job", summary, **spec))
    assert state.name == name
    assert state.runnable(max_retries=2) == again


def test_a_held_lease_means_running_whatever_the_summary_says(tmp_path):
    folder = write(tmp_path / "job", {"state": "interrupted"})
    with hold_lease(folder / "lease"):
        assert job_state(folder).name == "running"
    assert job_state(folder).name == "interrupted"


@pytest.mark.parametrize(
    ("says", "name", "again"),
    [
        ("PENDING", "queued", False),
        ("REQUEUED", "queued", False),
        ("RUNNING", "running", False),
        ("SIGNALING", "running", False),  # a word that is not known to mean the end does not mean it
        ("CANCELLED", "interrupted", True),
        ("COMPLETING", "running", False),
        ("FAILED", "lost", True),
        ("NODE_FAIL", "lost", True),
        ("OUT_OF_MEMORY", "failed", False),
        ("", "lost", True),  # squeue has forgotten it
    ],
)
def test_what_slurm_says_counts(tmp_path, says, name, again):
    folder = write(tmp_path / "job", {"state": "running"})
    state = job_state(folder, says)
    assert state.name == name
    assert state.runnable(max_retries=2) == again
    finished = write(tmp_path / "done", {"state": "finished"})
    assert job_state(finished, "COMPLETING").name == "finished"


@pytest.mark.parametrize(("says", "name"), [(None, "queued"), ("", "lost"), ("FAILED", "lost"), ("PENDING", "queued")])
def test_a_job_that_was_submitted_and_never_began_is_lost(tmp_path, says, name):
    """Or a sweep whose jobs die before their first word would submit them for ever."""
    state = job_state(write(tmp_path / "job"), says)
    assert state.name == name
    assert not job_state(write(tmp_path / "tired", retries=2), "").runnable(max_retries=2)


@pytest.mark.parametrize("broken", ["{broken", "[]", ""])
def test_a_job_whose_files_cannot_be_read_is_named_and_left(tmp_path, broken):
    folder = write(tmp_path / "job", {"state": "finished", "step": "abc", "final": [1]})
    assert job_state(folder).name == "finished"  # wrong types in a file never crash a table
    (folder / "summary.json").write_text(broken)
    state = job_state(folder)
    assert state.name == "failed"
    assert "summary.json cannot be read" in state.error
    assert not state.runnable(max_retries=2)
    (folder / "job.json").write_text(broken)
    assert planned_steps(folder) == 0


def test_the_last_record_is_read_from_the_end(tmp_path):
    lines = [json.dumps({"step": s, "pad": "x" * 1000}) for s in range(200)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 200, "rew')
    assert last_records(tmp_path)[-1]["step"] == 199
    assert 50 < len(last_records(tmp_path)) < 70  # 64 KiB of 1 KB lines
    assert last_records(tmp_path / "nothing") == []


def test_the_table_fits_a_terminal(tmp_path):
    name = "method=rlrt,seed=0," + "train.steps=3," * 5 + "-1e767862ff18"
    state = job_state(write(tmp_path / "job"))
    records = [{"step": 2, "reward/mean": 0.5, "time/step_s": 1.0}, {"step": 3, "reward/mean": 0.5, "time/step_s": 2.0}]
    text = table([Row(name, dataclasses.replace(state, name="interrupted"), records, 150)])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert shortened(name).endswith("1e767862ff18")
    assert "3/150   0.500" in text
    running = table([Row(name, dataclasses.replace(state, name="running"), records, 150)])
    assert running.splitlines()[-1].endswith("3m40s")  # 147 steps of 1.5 s
    assert seconds_left([], 150) is None


def test_a_running_job_shows_its_rate_and_no_other_does(tmp_path):
    state = job_state(write(tmp_path / "job"))
    records = [{"step": 3, "time/step_s": 0.25}]
    lines = [
        table([Row("job", dataclasses.replace(state, name=name), records, 9)]).splitlines()[-1].split()
        for name in ("running", "lost")
    ]
    assert lines == [["job", "running", "3/9", "-", "4.0/s", "2s"], ["job", "lost", "3/9", "-", "-", "-"]]
    assert [rate(s) for s in (None, 0.004, 1.6, 9.9, 38, 185)] == [
        "-",
        "250/s",
        "0.62/s",
        "0.10/s",
        "38s/step",
        "3m05s/step",
    ]


def test_a_line_for_each_sweep(tmp_path):
    state = job_state(write(tmp_path / "job"))
    name = "method=rlrt,grpo,seed=0,1,2,train.steps=100,train.lr=1e-3-0123abcd"

    def row(state_name, each_s=None, step=0):
        records = [] if each_s is None else [{"step": step, "time/step_s": each_s}]
        return Row("job", dataclasses.replace(state, name=state_name), records, 100)

    rows = [row("running", 1.0, 40), row("running", 0.5, 90), row("queued"), row("queued"), row("finished")]
    driven = Whole(name, rows, {"pid": 7, "host": "login\x1b"})
    lines = overview([driven, Whole(name, rows, {}), Whole("mine", [row("finished")], {})]).splitlines()
    assert (
        " ".join(lines[2].split())
        == r"method=rlrt,grpo..0123abcd 2 running, 2 queued, 1 finished 3.0/s 1m30s 7 on login\x1b"
    )
    assert lines[3].split()[-3:] == [
        "3.0/s",
        "1m00s",
        "-",
    ]  # nobody starts those that wait: until the last that runs has ended
    assert lines[4].split() == ["mine", "1", "finished", "-", "-", "-"]


def test_a_record_is_followed_as_it_grows_and_when_it_is_cut(tmp_path):
    file, follower = tmp_path / "metrics.jsonl", Follower(tmp_path)
    assert follower.new() == []
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert follower.new() == [{"step": 1}, {"step": 2}]
    assert follower.new() == []
    with file.open("a") as handle:
        handle.write('ep": 3}\n')
    assert follower.new() == [{"step": 3}]
    cut = tmp_path / "cut"  # what JsonLines.cut_after does: another file under the same name
    cut.write_text('{"step": 1}\n')
    cut.replace(file)
    assert follower.new() == [{"step": 1}]


def test_reading_a_thousand_jobs_is_quick(tmp_path):
    for i in range(1000):
        write(tmp_path / f"job{i}", {"state": "finished", "step": 1, "final": {"a": 1.0}}, retries=0)
    begin = time.process_time()
    states = [job_state(tmp_path / f"job{i}").name for i in range(1000)]
    assert set(states) == {"finished"}
    assert (
        time.process_time() - begin < 2.0
    )  # DESIGN: status on 1,000 jobs in under 2 s; CPU time, so load does not matter


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_a_record_ends_at_a_newline_and_nowhere_else(tmp_path, sign):
    rows = [{"step": 1, f"one{sign}two": 0.5}, {"step": 2}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert last_records(tmp_path) == rows
    assert Follower(tmp_path).new() == rows
