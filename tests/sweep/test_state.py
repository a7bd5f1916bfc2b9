from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rlrt.sweep.driver import slurm_aware
from rlrt.sweep.lease import Held, held, hold, holder
from rlrt.sweep.state import job_state, last_record, planned_steps
from rlrt.sweep.table import shortened, table

HOLDER = """
import sys, time
from pathlib import Path
from rlrt.sweep.lease import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lease")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert held(tmp_path / "lease")
    assert holder(tmp_path / "lease")["pid"] == process.pid
    with pytest.raises(Held) as caught, hold(tmp_path / "lease"):
        pass
    assert caught.value.who["pid"] == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not held(tmp_path / "lease")
    with hold(tmp_path / "lease"):
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
    with hold(folder / "lease"):
        assert job_state(folder).name == "running"
    assert job_state(folder).name == "interrupted"


@pytest.mark.parametrize(
    ("says", "name", "again"),
    [
        ("PENDING", "running", False),
        ("REQUEUED", "running", False),
        ("FAILED", "lost", True),
        ("NODE_FAIL", "lost", True),
        ("OUT_OF_MEMORY", "failed", False),
        ("", "lost", True),  # squeue has forgotten it
    ],
)
def test_what_slurm_says_counts(tmp_path, says, name, again):
    folder = write(tmp_path / "job", {"state": "running"}, slurm_id="7_1")
    state = slurm_aware(folder, {"7_1": says} if says else {})
    assert state.name == name
    assert state.runnable(max_retries=2) == again
    finished = write(tmp_path / "done", {"state": "finished"}, slurm_id="7_1")
    assert slurm_aware(finished, {"7_1": "COMPLETING"}).name == "finished"


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
    assert last_record(tmp_path)["step"] == 199
    assert last_record(tmp_path / "nothing") == {}


def test_the_table_fits_a_terminal(tmp_path):
    name = "method=rlrt,seed=0," + "train.steps=3," * 5 + "-1e767862ff18"
    state = job_state(write(tmp_path / "job"))
    text = table([(name, state, {"step": 3, "reward/mean": 0.5}, 150)])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert shortened(name).endswith("1e767862ff18")
    assert "3/150   0.500" in text


def test_reading_a_thousand_jobs_is_quick(tmp_path):
    for i in range(1000):
        write(tmp_path / f"job{i}", {"state": "finished", "step": 1, "final": {"a": 1.0}}, retries=0)
    begin = time.process_time()
    states = [job_state(tmp_path / f"job{i}").name for i in range(1000)]
    assert set(states) == {"finished"}
    assert (
        time.process_time() - begin < 2.0
    )  # DESIGN: status on 1,000 jobs in under 2 s; CPU time, so load does not matter
