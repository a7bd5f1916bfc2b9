"""Who takes which share, and what several processes are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlrt.distributed.cards import refuse_shared_cards
from rlrt.distributed.world import ALONE, parts
from rlrt.errors import UserError
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
