from __future__ import annotations

import json
import threading
import time

import pytest

from rlrt.records.lease import LeaseTaken, hold_lease, is_held
from rlrt.records.names import readable, sweep_hash
from tests.sweep.test_driver import SMALL, finish, run, start, wait_for


def test_a_look_does_not_turn_a_holder_away(tmp_path):
    """Looking takes the lock for a moment; whoever wants it waits that long."""
    stop = threading.Event()

    def look():
        while not stop.is_set():
            is_held(tmp_path / "lease")

    with hold_lease(tmp_path / "lease"):
        pass
    thread = threading.Thread(target=look)
    thread.start()
    try:
        held_times = 0
        for _ in range(300):
            with hold_lease(tmp_path / "lease"):
                held_times += 1
        assert held_times == 300
    finally:
        stop.set()
        thread.join()


def test_a_lock_that_stays_taken_is_refused(tmp_path):
    begin = time.monotonic()
    with hold_lease(tmp_path / "lease"), pytest.raises(LeaseTaken), hold_lease(tmp_path / "lease"):
        pass
    assert time.monotonic() - begin >= 1.0


def test_one_folder_has_one_run_at_a_time_and_sync_leaves_it_alone(tmp_path, held):
    hold = held(steps=1)
    typed = ("method=grpo", "train.save_every=0", *SMALL, f"hydra.run.dir={tmp_path}/run", *hold.keys)
    first = start(tmp_path, *typed, "tracking.uri=http://127.0.0.1:9")
    wait_for(hold.waiting)
    code, output = run(tmp_path, *typed)
    assert code == 2
    assert f"is being run by process {first.pid}" in output
    code, output = run(tmp_path, str(tmp_path), module="rlrt.sync")
    assert (code, "0 of 0 runs" in output) == (0, True)
    first.terminate()
    code, output = finish(first)
    assert code == 128 + 15, output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["state"], summary["mlflow_complete"]) == ("interrupted", False)


def test_a_tracking_uri_enters_no_name():
    typed = ["method=grpo", "++tracking.uri=http://user:secret@host"]
    assert readable(typed, "x") == "method=grpo"
    assert sweep_hash(typed) == sweep_hash(["method=grpo"])
