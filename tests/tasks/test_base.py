"""Ids are functions of what a problem is."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from rlrt.tasks import reasoning
from rlrt.tasks.base import content_id
from tests.helpers import settings


@given(st.lists(st.text(max_size=8), max_size=3), st.lists(st.text(max_size=8), max_size=3))
def test_an_id_is_short_and_a_function_of_its_texts_alone(a, b):
    assert re.fullmatch(r"[0-9a-f]{16}", content_id(*a))
    assert (content_id(*a) == content_id(*b)) == (a == b)


def test_texts_do_not_run_into_each_other():
    ways = [
        ("ab", "c", ""),
        ("a", "bc", ""),
        ("a", "b", "c"),
        ("abc", "", ""),
        ('a","b', "c", ""),
        ("abc",),
        ("\ud800",),
    ]
    assert len({content_id(*texts) for texts in ways}) == len(ways)


def test_it_stays_what_it_is():
    """Records of runs hold ids: a change makes a half-done evaluation begin anew."""
    assert content_id("1+1?", "2", "") == "7d7b316a77340fe1"


def test_procedural_problems_are_named_by_task_and_content(monkeypatch):
    """Whatever the data set's size and seed: reasoning-gym itself is not asked here."""
    made = settings("data=reasoning_gym", "data.task=chain_sum").data
    monkeypatch.setattr(reasoning, "entry", lambda p: {"question": f"{p[3] % 4} + 1?", "answer": p[3] % 4 + 1})
    train, held = made._made(6, 0, set()), made._made(8, 1, {"0 + 1?"})
    assert [p.id for p in train] == [f"chain_sum:{content_id(f'{n} + 1?', str(n + 1))}" for n in range(4)]
    assert [p.id for p in held] == [p.id for p in train[1:]]
