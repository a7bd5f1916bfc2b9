"""Who takes which share, and who is named when one of several processes is gone: on a real store, in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from rlrt.distributed import watch
from rlrt.distributed.cards import refuse_shared_cards
from rlrt.distributed.rank import EXIT
from rlrt.distributed.watch import Watch, alive
from rlrt.distributed.world import ALONE, parts
from rlrt.errors import RankLost, UserError
from rlrt.execution.execute import refuse_sharding
from tests.helpers import settings


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_parts_are_the_whole_in_order_and_no_part_is_much_too_heavy(weights, size):
    found = parts(weights, size)
    assert len(found) == size
    assert [i for part in found for i in part] == list(range(len(weights)))
    for part in found:
        mine = [weights[i] for i in part]
        assert not mine or sum(mine) <= sum(weights) / size + max(mine)


def test_parts_by_hand():
    assert parts([1] * 8, 2) == [range(4), range(4, 8)]
    assert parts([1] * 2, 3) == [range(1), range(1, 1), range(1, 2)]
    assert parts([6, 1, 1, 1, 1, 1, 1], 2) == [range(1), range(1, 7)]
    assert parts([], 2) == [range(0), range(0)]


def test_one_process_is_a_world_too():
    assert ALONE.gather([1, 2]) == [1, 2]
    assert (ALONE.any(True), ALONE.most(3), ALONE.sum({"a": 1.0}), ALONE.main) == (True, 3, {"a": 1.0}, True)
    with pytest.raises(UserError):
        ALONE.on_main(lambda: (_ for _ in ()).throw(UserError("no")))


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(watch, "SILENCE_S", 0.5)
    monkeypatch.setattr(watch, "BEAT_S", 0.05)
    monkeypatch.setattr(watch, "GRACE_S", 0.2)
    return dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)


def note(store, rank, **more):
    """What a process says of itself."""
    says = {"beat": 1, "pid": 7, "host": "elsewhere", "meetings": 0, "failure": ""}
    store.set(f"rlrt/{rank}", json.dumps(says | more))


BROKEN = RuntimeError("[gloo] Connection closed by peer")


def test_a_process_of_another_machine_that_is_silent_is_named(store):
    mine = Watch(store, 0, 3, 60.0)
    note(store, 1)
    note(store, 2, left=True)
    found = mine.explained(BROKEN)
    assert isinstance(found, RankLost)
    assert str(found) == "rank 1 (pid 7 on elsewhere) gave no sign of life for 0 s"


def test_a_process_of_this_machine_that_has_ended_is_named_at_once(store, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE_S", 60.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert ended.wait() == 0
    note(store, 1, pid=ended.pid, host=socket.gethostname())
    found = Watch(store, 0, 2, 60.0).explained(BROKEN)
    assert (
        str(found)
        == f"rank 1 (pid {ended.pid} on {socket.gethostname()}) is gone: it was killed, or its machine took it away"
    )


def test_what_a_process_failed_of_is_told_to_the_others(store):
    first, second = Watch(store, 0, 2, 60.0), Watch(store, 1, 2, 60.0)
    error = MemoryError("no more\nthan this")
    assert second.explained(error) is error
    found = first.explained(BROKEN)
    assert str(found) == f"rank 1 (pid {os.getpid()} on {socket.gethostname()}) failed: MemoryError: no more"
    assert first.explained(found) is found  # and is not told again as one's own
    assert not first.failed


def test_an_error_that_nobody_else_caused_stays_what_it_is(store):
    mine, other = Watch(store, 0, 2, 60.0), Watch(store, 1, 2, 60.0)
    other.start()
    try:
        assert mine.explained(BROKEN) is BROKEN
    finally:
        other.stop()


def test_whoever_keeps_the_others_waiting_is_named_and_left(store):
    left = []
    mine, other = Watch(store, 0, 2, 0.3, leave=left.append), Watch(store, 1, 2, 0.3)
    other.start()
    mine.start()
    try:
        with mine.meeting():
            mine._thread.join(timeout=30)
        assert left == [EXIT]
        assert f"rank 1 (pid {os.getpid()}" in mine._late_sentence()
        assert "kept the others waiting for 0.3 s (distributed.patience_s)" in mine._late_sentence()
        timed_out = mine.explained(RuntimeError("gloo: Timed out waiting 300ms for recv operation to complete"))
        assert isinstance(timed_out, RankLost)
    finally:
        other.stop()
        mine.stop()


def test_a_store_that_is_gone_took_its_process_with_it():
    class Gone:
        def clone(self):
            return self

        def set(self, *_):
            raise dist.DistNetworkError("Connection reset by peer")

        check = get = set

    found = Watch(Gone(), 1, 2, 60.0).explained(BROKEN)
    assert isinstance(found, RankLost)
    assert "holds the rendezvous" in str(found)


def test_alive():
    assert alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
    assert not alive(child.pid)
    child.wait()
    assert not alive(child.pid)


@pytest.mark.parametrize(
    ("ranks", "cards", "refused"), [("3", 2, True), ("2", 1, True), ("2", 2, False), ("8", 0, False)]
)
def test_two_ranks_do_not_share_a_gpu(monkeypatch, ranks, cards, refused):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    if refused:
        with pytest.raises(UserError, match=rf"{ranks} processes on this machine, which may use {cards} GPU"):
            refuse_shared_cards(cards)
    else:
        refuse_shared_cards(cards)


def test_an_engine_that_reads_whole_weights_is_refused_before_they_are_sharded():
    made = settings("distributed.strategy=fsdp")
    refuse_sharding(made, 8)
    own = settings("engine._target_=tests.engines.copying.CopyingEngine", "+engine.importance_clip=2.0", "+engine.off=0.0",
                   "distributed.strategy=fsdp")  # fmt: skip
    with pytest.raises(UserError, match="CopyingEngine reads whole weights"):
        refuse_sharding(own, 2)
    refuse_sharding(own, 1)
