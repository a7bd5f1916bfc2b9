"""Who is named when one of several processes is gone: on a real store, most in one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from rlrt.distributed import watch
from rlrt.distributed.rank import EXIT
from rlrt.distributed.watch import Watch
from rlrt.errors import RankLost
from rlrt.machine import alive, machine

HERE = socket.gethostname()
BROKEN = RuntimeError("[gloo] Connection closed by peer")


@pytest.fixture
def store(monkeypatch):
    for name, seconds in (("SILENCE_S", 1.0), ("BEAT_S", 0.05), ("GRACE_S", 0.2), ("TELL_S", 1.0)):
        monkeypatch.setattr(watch, name, seconds)
    return dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)


@contextlib.contextmanager
def watching(store, rank, size, patience_s=60.0, **more):
    """A watch that runs; instead of ending this process it notes that in ``left``."""
    left = []
    made = Watch(store, rank, size, patience_s, **({"leave": left.append} | more))
    made.left = left
    made.start()
    try:
        yield made
    finally:
        made.stop()


def note(store, rank, **more):
    """What a process says of itself."""
    says = {"beat": 1, "pid": 7, "host": "elsewhere", "machine": "elsewhere", "meetings": 0, "failure": ""}
    store.set(f"rlrt/{rank}", json.dumps(says | more))


def eventually(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def within(seconds, work):
    """What ``work`` returns; it fails where that takes longer, however it hangs."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"it still hangs after {seconds} s"
    return found[0]


def test_a_process_of_another_machine_that_is_silent_is_named(store):
    note(store, 1)
    note(store, 2, left=True)
    with watching(store, 0, 3) as mine:
        found = mine.explained(BROKEN)
    assert isinstance(found, RankLost)
    assert str(found) == "rank 1 (pid 7 on elsewhere) gave no sign of life for 1 s"


def test_a_process_of_this_machine_that_has_ended_is_named_at_once(store, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE_S", 60.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert ended.wait() == 0
    note(store, 1, pid=ended.pid, host=HERE, machine=machine())
    with watching(store, 0, 2) as mine:
        found = mine.explained(BROKEN)
    assert str(found) == f"rank 1 (pid {ended.pid} on {HERE}) is gone: it was killed, or its machine took it away"


def test_two_machines_of_one_hostname_do_not_take_each_others_pids_for_their_own(store):
    """Neither is a healthy rank gone because its pid is none here, nor is a stranger of this machine killed in its place."""
    ended, stranger = subprocess.Popen([sys.executable, "-c", ""]), subprocess.Popen(["sleep", "60"])
    assert ended.wait() == 0
    try:
        note(store, 1, pid=ended.pid, host=HERE, machine=f"{HERE} other-boot pid:[1]", meetings=5)
        note(store, 2, pid=stranger.pid, host=HERE, machine=f"{HERE} other-boot pid:[1]")
        with watching(store, 0, 3, patience_s=0.1) as mine:
            assert eventually(lambda: len(mine._notes) == 2)
            assert mine.lost() == ""
            with mine.meeting():
                assert eventually(lambda: mine.left == [EXIT])
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_machine_is_more_than_its_name():
    name, boot, pids = machine().split(" ")
    assert name == HERE
    assert len(boot) == 36
    assert pids.startswith("pid:[")


def test_what_a_process_failed_of_is_told_to_the_others(store):
    with watching(store, 0, 2) as first, watching(store, 1, 2) as second:
        error = MemoryError("no more\nthan this")
        assert second.explained(error) is error
        found = first.explained(BROKEN)
        assert str(found) == f"rank 1 (pid {os.getpid()} on {HERE}) failed: MemoryError: no more"
        assert first.explained(found) is found  # and is not told again as one's own
        assert not first.failed


def test_an_error_that_nobody_else_caused_stays_what_it_is(store):
    with watching(store, 0, 2) as mine, watching(store, 1, 2):
        assert mine.explained(BROKEN) is BROKEN


def test_whoever_keeps_the_others_waiting_is_named_and_left(store):
    with watching(store, 1, 2, 0.3), watching(store, 0, 2, 0.3) as mine:
        with mine.meeting():
            assert eventually(lambda: mine.left == [EXIT])
        assert f"rank 1 (pid {os.getpid()}" in mine._late_sentence()
        assert "kept the others waiting for 0.3 s (distributed.patience_s)" in mine._late_sentence()
        timed_out = mine.explained(RuntimeError("gloo: Timed out waiting 300ms for recv operation to complete"))
        assert isinstance(timed_out, RankLost)


def test_a_store_that_is_gone_took_its_process_with_it(store):
    class Gone:
        def clone(self):
            return self

        def set(self, *_):
            raise dist.DistNetworkError("Connection reset by peer")

        check = get = set

    with watching(Gone(), 1, 2) as mine:
        found = mine.explained(BROKEN)
    assert isinstance(found, RankLost)
    assert str(found) == "rank 0, which holds the rendezvous, is gone"


@pytest.fixture
def stopped_holder(store):
    """A client of a store whose process can be stopped, so that its socket takes all and answers nothing, as without power."""
    code = "import sys, torch.distributed as d; s = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(s.port, flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    port = int(holder.stdout.readline())
    try:
        yield dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False), holder
    finally:
        holder.kill()
        holder.communicate()


def test_a_store_that_hangs_is_noticed_and_its_holder_named(stopped_holder, capfd):
    """Power loss of rank 0's machine: no connection is closed, every call of the store hangs, so may the main thread."""
    store, holder = stopped_holder
    words = []
    note(store, 0)
    with watching(store, 1, 2, last_words=words.append) as mine:
        assert eventually(lambda: 0 in mine._notes)
        holder.send_signal(signal.SIGSTOP)
        found = within(10, lambda: mine.explained(BROKEN))
        assert str(found) == "rank 0 (pid 7 on elsewhere), which holds the rendezvous, gave no sign of life for 1 s"
        assert eventually(lambda: mine.left == [EXIT])
        assert words == [str(found)]
        error = ZeroDivisionError("own")
        assert within(10, lambda: mine.explained(error)) is error
        within(10, lambda: mine.stop() or True)
    assert "error: rank 1 of 2 ends: rank 0 (pid 7 on elsewhere), which holds the rendezvous" in capfd.readouterr().err


def test_a_store_that_is_only_slow_ends_nobody(stopped_holder, monkeypatch):
    """And the silence of the store is not that of every other rank."""
    store, holder = stopped_holder
    monkeypatch.setattr(watch, "SILENCE_S", 3.0)
    monkeypatch.setattr(watch, "GRACE_S", 2.0)
    with watching(store, 0, 2) as other, watching(store, 1, 2) as mine:
        assert eventually(lambda: 0 in mine._notes and 1 in other._notes)
        holder.send_signal(signal.SIGSTOP)
        time.sleep(3.5)
        assert "holds the rendezvous, gave no sign of life" in mine.lost()
        holder.send_signal(signal.SIGCONT)
        assert eventually(lambda: mine.lost() == "")
        time.sleep(0.5)
        assert (mine.left, other.left) == ([], [])


def test_last_words_that_hang_do_not_hold_a_rank(store, monkeypatch):
    """The folder may lie on the disk of the machine that is gone."""
    monkeypatch.setattr(watch, "TELL_S", 0.2)
    note(store, 1)
    with watching(store, 0, 2, last_words=lambda sentence: time.sleep(30)) as mine:
        assert eventually(lambda: mine.left == [EXIT], 10)


def test_a_broken_collective_and_a_signal_are_enough_to_name_a_rank(store, monkeypatch):
    """srun ends the other tasks of a job a few seconds after one was killed (KillWait): no time for 20 s of silence."""
    monkeypatch.setattr(watch, "SILENCE_S", 60.0)
    signals, words = [], []
    note(store, 1)
    with watching(store, 0, 3, last_words=words.append, hurried=lambda: bool(signals)) as mine, watching(store, 2, 3):
        assert eventually(lambda: len(mine._notes) == 2)
        time.sleep(0.5)
        with pytest.raises(RuntimeError, match="gloo"), mine.meeting():
            raise BROKEN
        time.sleep(0.5)
        assert mine.lost() == ""  # nobody is in a hurry
        signals.append(signal.SIGTERM)
        began = time.monotonic()
        found = mine.explained(BROKEN)
        assert (
            str(found)
            == "rank 1 (pid 7 on elsewhere) is gone: its connections broke, and it gave no sign of life since"
        )
        assert time.monotonic() - began < 2
        assert eventually(lambda: words == [str(found)])


def test_a_signal_alone_names_nobody(store, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE_S", 60.0)
    note(store, 1)
    with watching(store, 0, 2, hurried=lambda: True) as mine:
        assert eventually(lambda: 1 in mine._notes)
        time.sleep(0.5)
        assert mine.lost() == ""


def test_ranks_that_cannot_connect_end_after_the_meetings_limit(store):
    with watching(store, 1, 2), watching(store, 0, 2) as mine, mine.connecting(0.3, "it was in vain"):
        assert eventually(lambda: mine.left == [EXIT])


def test_alive():
    assert alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
    assert not alive(child.pid)
    child.wait()
    assert not alive(child.pid)
