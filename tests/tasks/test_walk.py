from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlrt.errors import UserError
from rlrt.tasks.walk import (
    Problem,
    Walk,
    adds_first,
    after,
    drawn,
    end_of,
    family_of,
    move_sets,
    outcome,
    text_of,
    walk_of,
    walks_from,
)
from rlrt.types import Prompt

MOVES = (("+", 7), ("+", 12), ("-", 9), ("*", 5))
PROBLEM = Problem(3, 62, MOVES)
PROMPT = Prompt(id="p", text="3,62:+7*5-9+12", answer=PROBLEM)


@pytest.fixture(scope="module")
def task():
    task = Walk(train_prompts=300, heldout_prompts=40, shortest=2, longest=4, most_moves=6, solved_by="any")
    task.prepare()
    return task


@pytest.mark.parametrize(
    ("text", "canonical", "family"),
    [
        ("+7=10*5=50+12=62", "+7*5+12", "+*+"),
        ("+7*5+12", "+7*5+12", "+*+"),
        ("+7=10*5+12=62", "+7*5+12", "+*+"),
        ("<think>*5=15;+7=10</think>+7=10*5=50+12=62", "+7*5+12", "+*+"),
    ],
)
def test_right_walks(task, text, canonical, family):
    grade = task.grade(PROMPT, text)
    assert (grade.correct, grade.reward) == (True, 1.0)
    assert (task.canonical(PROMPT, text), task.family(PROMPT, text)) == (canonical, family)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "nothing"),
        ("62", "no move"),
        ("=62", "no move before the number"),
        ("+7=10*5=50", "ends elsewhere"),
        ("+7=10*5=50+12=61", "a wrong number at the end"),
        ("+7=11*5=50+12=62", "a wrong number on the way"),
        ("+7=10*5=50+12=62 ", "a space"),
        ("+7=10*5=50+12=62;", "a separator"),
        ("+7=10*5=50+12=62<", "junk"),
        ("+07=10*5=50+12=62", "a leading zero"),
        ("+7=10*5=50+12=062", "a leading zero in a number"),
        ("+59=62", "a move that is not allowed"),
        ("+7=10*5=50+12=62<think>", "a thought that never ends"),
        ("*5=15+7=22+7=29+7=36+7=43+7=50+12=62", "seven moves"),
        ("*5=15*5=75-9=66+12=78+12=90+7=97", "ends elsewhere, on the way up"),
        ("+7=10-9=1-9=-8*5=50+12=62", "below 0"),
        ("*5=15*5=75*5=375", "above 99"),
    ],
)
def test_wrong_walks(task, text, why):
    assert not task.grade(PROMPT, text).correct, why
    assert task.grade(PROMPT, text).reward == 0.0


def test_numbers_stay_within_0_and_99():
    assert after(90, ("+", 9)) == 99
    assert after(90, ("+", 10)) is None
    assert after(8, ("-", 9)) is None
    assert after(9, ("-", 9)) == 0
    assert after(20, ("*", 5)) is None
    assert end_of(3, [("+", 7), ("*", 5), ("-", 9)]) == 41
    assert end_of(3, [("-", 9), ("+", 12)]) is None
    with pytest.raises(ValueError, match="leads from 3 out of 0 to 99"):
        text_of(3, [("-", 9)])


@given(st.integers(0, 99), st.lists(st.sampled_from(MOVES), min_size=1, max_size=4), st.booleans())
def test_what_is_written_is_read_again(start, walk, numbers):
    value = start
    for operator, number in walk:
        value = eval(f"{value} {operator} {number}")
        if not 0 <= value <= 99:
            assert end_of(start, walk) is None
            return
    text = text_of(start, walk, numbers)
    steps = walk_of(text)
    assert [move for move, _ in steps] == walk
    assert [claimed is not None for _, claimed in steps] == [numbers] * len(walk)
    assert outcome(Problem(start, 0, MOVES), text, 4) == end_of(start, walk) == value


@given(st.text(alphabet="+-*=0123456789", max_size=14))
def test_any_text_is_judged(text):
    task = Walk(1, 1, 1, 4, 6, "any")
    assert task.grade(PROMPT, text).correct == (outcome(PROBLEM, text, 6) == 62)


def test_every_walk_is_found_once():
    found = walks_from(3, MOVES, 3)
    walks = [walk for those in found.values() for walk in those]
    legal = [w for n in (1, 2, 3) for w in itertools.product(MOVES, repeat=n) if end_of(3, w) is not None]
    assert sorted(walks) == sorted(legal)
    assert len(legal) < 4 + 16 + 64
    for end, those in found.items():
        assert [len(w) for w in those] == sorted(len(w) for w in those)
        assert all(outcome(Problem(3, end, MOVES), text_of(3, w), 3) == end for w in those)


def test_moves_that_are_held_out_are_not_trained_on(task):
    train, heldout = (set(sets) for sets in move_sets())
    assert not train & heldout
    assert {p.answer.moves for p in task.train} <= train
    assert {p.answer.moves for p in task.heldout} <= heldout


def test_the_prompts_are_solved_by_their_solutions_and_differ(task):
    for prompt in (*task.train, *task.heldout):
        assert task.grade(prompt, prompt.solution).correct
        start, target = prompt.text.split(":")[0].split(",")
        assert (int(start), int(target)) == (prompt.answer.start, prompt.answer.target)
        assert start != target
    assert len({p.id for p in task.train}) == 300


def test_the_prompts_are_the_same_each_time(task):
    again = Walk(train_prompts=300, heldout_prompts=40, shortest=2, longest=4, most_moves=6, solved_by="any")
    again.prepare()
    assert again.train == task.train
    fewer = Walk(train_prompts=10, heldout_prompts=5, shortest=2, longest=4, most_moves=6, solved_by="any")
    fewer.prepare()
    assert fewer.train == task.train[:10]


@pytest.mark.parametrize("solved_by", ["adding", "other"])
def test_problems_by_what_solves_them(solved_by):
    for _, walks in drawn(move_sets()[0], 100, 2, 4, 0, solved_by):
        assert any(walk[0][0] == "+" for walk in walks) == (solved_by == "adding")


def test_the_task_has_several_kinds_of_solutions():
    """What the testbed rests on (docs/testbed.md): most problems have several, and some need one of the rare kind."""
    problems = drawn(move_sets()[1], 512, 2, 4, 2)
    kinds = [len({family_of(w) for w in walks}) for _, walks in problems]
    assert 2.4 < sum(kinds) / 512 < 2.7
    assert 0.2 < sum(not adds_first(walks) for _, walks in problems) / 512 < 0.3


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"shortest": 4, "longest": 3}, "data.shortest: expected at most data.longest, and that .* got 4, 3 and 6"),
        ({"heldout_prompts": 1000, "shortest": 1, "longest": 1}, "data.heldout_prompts: expected at most as many"),
    ],
)
def test_keys_that_cannot_be(keys, says, monkeypatch):
    monkeypatch.setattr("rlrt.tasks.walk.move_sets", lambda: ([MOVES], [MOVES]))
    task = Walk(
        **(
            {"train_prompts": 1, "heldout_prompts": 1, "shortest": 2, "longest": 4, "most_moves": 6, "solved_by": "any"}
            | keys
        )
    )
    with pytest.raises(UserError, match=says):
        task.prepare()
