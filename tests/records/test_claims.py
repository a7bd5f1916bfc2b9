"""Claims: who has a folder where the lock does not say it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from rlrt.errors import Replaced
from rlrt.records import claims, lease
from rlrt.records.claims import file_of, newest, note_of, refuse_replaced
from rlrt.records.folder import RunFolder
from rlrt.records.lease import LeaseTaken, hold_lease, holder


@pytest.fixture
def quick(monkeypatch):
    """Short beats, and locks that hold nobody off."""
    monkeypatch.setattr(claims, "BEAT_S", 0.1)
    monkeypatch.setattr(claims, "BEATS", 20)
    monkeypatch.setattr(claims, "LAG_S", 0.5)
    monkeypatch.setattr(lease.fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(lease, "UNSHARED", set())


def foreign(path, number=1, **note):
    """A claim of a process of another machine."""
    values = {"pid": 7, "host": "node4", "machine": "another", "started": "1", "nonce": "a" * 16, "beat": 3} | note
    file_of(path, number).write_text(json.dumps(values))


def test_a_folder_at_rest_has_no_claim(tmp_path):
    path = tmp_path / "lease"
    for _ in range(3):
        with hold_lease(path):
            assert newest(path) == 1
            assert json.loads(file_of(path, 1).read_text())["nonce"] == holder(path)["nonce"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lease.json", "lease.lock"]


def test_a_living_process_is_seen_though_its_lock_is_free(tmp_path, quick, capsys):
    path = tmp_path / "lease"
    with hold_lease(path):
        for _ in range(2):
            with pytest.raises(LeaseTaken) as caught, hold_lease(path):
                pass
            assert caught.value.holder["pid"] == os.getpid()
        refuse_replaced(path)
        assert newest(path) == 1
    said = capsys.readouterr().err
    assert said.count(f"WARNING: file locks do not hold in {tmp_path}: process {os.getpid()} on ") == 1


def test_a_process_of_another_machine_is_gone_when_its_beat_stands_still(tmp_path, quick, monkeypatch, capsys):
    path = tmp_path / "lease"
    foreign(path)
    begin = time.monotonic()
    with hold_lease(path):
        assert time.monotonic() - begin > claims.BEATS * claims.BEAT_S + claims.LAG_S - 0.01
        assert newest(path) == 2
        assert file_of(path, 1).exists()  # who sees the folder late finds a claim, whichever it sees
    assert newest(path) == 0
    assert "whether process 7 on node4 still lives" in capsys.readouterr().err


def test_of_many_claims_those_that_beat_are_told_after_one_wait(tmp_path, quick):
    """One of this process, one that beats and one that stands still of another machine, and a folder without any."""
    paths = [tmp_path / name / "lease" for name in ("own", "beats", "still", "none")]
    for path in paths:
        path.parent.mkdir()
    for path in paths[1:3]:
        foreign(path)
    with hold_lease(paths[0]):
        begin = time.monotonic()
        assert claims.moving([paths[0], paths[3]]).keys() == {paths[0]}
        assert time.monotonic() - begin < claims.BEATS * claims.BEAT_S
        beat = threading.Timer(2 * claims.BEAT_S, foreign, [paths[1]], {"beat": 4})
        beat.start()
        seen = claims.moving(paths)
        beat.join()
    assert seen.keys() == {paths[0], paths[1]}
    assert seen[paths[1]]["host"] == "node4"


def test_who_knows_that_the_holder_is_gone_waits_for_its_beats_alone(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(claims, "LAG_S", 300.0)
    foreign(tmp_path / "lease")
    with hold_lease(tmp_path / "lease", lag_s=0.0):
        assert newest(tmp_path / "lease") == 2


def test_the_clocks_of_machines_are_not_compared(tmp_path, quick):
    path, stop = tmp_path / "lease", threading.Event()

    def beat():
        number = 0
        while not stop.wait(0.05):
            number += 1
            foreign(path, since=-1e9, beat=number)

    foreign(path)
    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(LeaseTaken) as caught, hold_lease(path):
            pass
        assert (caught.value.holder["pid"], caught.value.holder["host"]) == (7, "node4")
    finally:
        stop.set()
        other.join()


DIES = """
import os, sys
from pathlib import Path
from rlrt.records.lease import hold_lease
with hold_lease(Path(sys.argv[1])):
    os._exit(9)
"""


def test_after_a_kill_on_this_machine_nobody_waits(tmp_path):
    path = tmp_path / "lease"
    for number in (1, 2):
        assert subprocess.run([sys.executable, "-c", DIES, str(path)], check=False).returncode == 9
        assert newest(path) == number
    begin = time.monotonic()
    with hold_lease(path):
        assert time.monotonic() - begin < 1.0
        assert newest(path) == 3
    assert newest(path) == 0


def test_a_number_that_another_process_has_by_now_is_not_the_process(tmp_path):
    path = tmp_path / "lease"
    foreign(path, pid=os.getpid(), machine=claims.machine(), started="1")
    begin = time.monotonic()
    with hold_lease(path):
        assert time.monotonic() - begin < 1.0


@pytest.mark.parametrize("number", [1, 2])
def test_who_was_replaced_writes_nothing_more(tmp_path, quick, number):
    """Also where the successor has ended, and removed both claims."""
    folder, path = RunFolder(tmp_path), tmp_path / "lease"
    with hold_lease(path):
        folder.write_manifest(identity="x")
        folder.set_state("running")
        before = (tmp_path / "summary.json").read_bytes()
        if number == 1:
            foreign(path, 2)
        else:
            file_of(path, 1).unlink()
            path.with_suffix(".json").write_text(json.dumps({"pid": 7, "host": "node4", "nonce": "a" * 16}))
        for write in (
            lambda: folder.set_state("failed"),
            lambda: folder.note(step=1),
            lambda: folder.write_manifest(a=1),
            folder.check_there,
        ):
            with pytest.raises(Replaced, match="was taken over by process 7 on node4"):
                write()
        assert (tmp_path / "summary.json").read_bytes() == before
    assert newest(path) == (2 if number == 1 else 0)  # the claim of another is not removed
    folder.set_state("failed")  # a process without a lease is not kept from it


def test_of_many_starters_one_wins_at_once(tmp_path, quick):
    path, won, begin = tmp_path / "lease", [], threading.Barrier(8)

    def claim():
        begin.wait()
        with claims.claimed(path, {"pid": os.getpid(), "host": "here"}):
            won.append(newest(path))
            done.wait()

    done = threading.Event()
    refused = []

    def starts():
        try:
            claim()
        except claims.Moves:
            refused.append(1)

    threads = [threading.Thread(target=starts) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(refused) < 7 and any(t.is_alive() for t in threads) and len(won) < 2:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert (won, len(refused)) == ([1], 7)


def test_an_old_view_of_the_folder_gives_no_second_claim(tmp_path, quick, monkeypatch):
    """A listing without the newest claim: the file itself cannot be made twice, and the folder is looked at again."""
    path = tmp_path / "lease"
    foreign(path, 1)
    with hold_lease(path):  # the second
        views = iter([0, 0])
        seen = claims.newest
        monkeypatch.setattr(claims, "newest", lambda p: next(views, None) or seen(p))
        with pytest.raises(LeaseTaken) as caught, hold_lease(path):
            pass
        assert caught.value.holder["pid"] == os.getpid()
        file_of(path, 1).unlink()
        views = iter([0])
        with pytest.raises(LeaseTaken), hold_lease(path):
            pass
        refuse_replaced(path)
        assert seen(path) == 2


@pytest.mark.parametrize("content", ["", "{broken", "[]"])
def test_a_claim_that_says_nothing_holds_nobody_up_for_ever(tmp_path, quick, content):
    path = tmp_path / "lease"
    file_of(path, 1).write_text(content)
    with hold_lease(path):
        assert newest(path) == 2


def test_beats_are_written_into_the_same_file(tmp_path, quick):
    path = tmp_path / "lease"
    with hold_lease(path):
        file, first = file_of(path, 1), note_of(path)["beat"]
        inode, size = file.stat().st_ino, file.stat().st_size
        end = time.monotonic() + 20
        while note_of(path)["beat"] == first and time.monotonic() < end:
            time.sleep(0.02)
        assert note_of(path)["beat"] > first
        assert (file.stat().st_ino, file.stat().st_size) == (inode, size)
    assert note_of(path) == {}


def test_a_look_at_each_step_costs_nothing(tmp_path):
    path = tmp_path / "lease"
    with hold_lease(path):
        begin = time.process_time()
        for _ in range(1000):
            refuse_replaced(path)
        assert time.process_time() - begin < 1.0  # a millisecond each, on any machine
