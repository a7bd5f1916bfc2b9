from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlrt.errors import UserError
from rlrt.tasks.countdown import (
    Countdown,
    Problem,
    drawn,
    drawn_path,
    is_heldout,
    outcome,
    paths,
    prompt_text,
    table,
    without_values,
)
from rlrt.types import Prompt
from tests.helpers import settings


@pytest.fixture(scope="module")
def task() -> Countdown:
    task = settings("data=countdown").data
    task.prepare()
    return task


PROBLEM = Problem((3, 4, 5), 17)
PROMPT = Prompt(id="17", text="17:3 4 5", answer=PROBLEM)


@pytest.mark.parametrize(
    "text",
    ["3*4=12,12+5=17", "4*3=12,5+12=17", "3+4=7,7+5=12;3*4=12,12+5=17", "3*4=12,12+5=17;4*3=12,12+5=17"],
)
def test_right_answers(task, text):
    grade = task.grade(PROMPT, text)
    assert grade.correct
    assert grade.reward == 1.0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "nothing"),
        ("17", "no steps"),
        ("3*4=12", "a number unused"),
        ("3*4=12,12+5=17,", "trailing comma"),
        ("3*4=12,12+5=17;", "trailing separator"),
        ("3*4=12,12+5=17 ", "trailing space"),
        ("3*4=12,12+5=17x", "trailing junk"),
        ("x3*4=12,12+5=17", "leading junk"),
        ("3*4=12, 12+5=17", "inner space"),
        ("3*4=12,12+5=18", "wrong sum on the way to another value"),
        ("3*4=13,13+4=17", "a wrong product and a number used twice"),
        ("3*4=11,12+5=17", "right result by wrong steps"),
        ("3*4=12,12+6=18", "a number that was not given"),
        ("3*4=12,3+5=8", "a number used twice"),
        ("3*4=12,12+5=17,17+3=20", "a number used twice after the target"),
        ("5/5=1,3*4=12", "an operator that is not allowed"),
        ("4-5=-1,3*4=12", "a negative value"),
        ("03*4=12,12+5=17", "leading zero"),
        ("3*4=12,12+5=017", "leading zero in the result"),
        ("3*4=12,12+5=17;3+4=7,7+5=12", "the last attempt misses"),
        ("junk;3*4=12,12+5=17", "an earlier attempt that is no attempt"),
        ("3*4=11,11+5=16;3*4=12,12+5=17", "an earlier attempt with wrong arithmetic"),
        (";3*4=12,12+5=17", "an empty earlier attempt"),
        ("3*4=12,12+5=17\n", "a newline"),
        ("٣*4=12,12+5=17", "digits of another script"),
    ],
)
def test_wrong_answers(task, text, why):
    assert not task.grade(PROMPT, text).correct, why


def test_values_stay_within_the_limit():
    assert outcome((15, 15, 1), "15*15=225,225*1=225") is None
    assert all(0 <= value <= 99 for value in paths((15, 15, 1)))


def test_every_path_is_legal_and_every_listed_value_right():
    for numbers in [(1, 1, 1), (3, 4, 5), (2, 9, 15)]:
        for value, attempts in paths(numbers).items():
            for attempt in attempts:
                assert outcome(numbers, attempt) == value


@given(st.text(alphabet="0123456789+-*=,;", max_size=30))
def test_the_verifier_agrees_with_the_enumeration(text):
    legal = {attempt for attempts in paths((3, 4, 5)).values() for attempt in attempts}
    assert (outcome((3, 4, 5), text) is not None) == (text in legal)


def test_one_changed_character_is_only_right_if_enumerated(task):
    rng = random.Random(0)
    right = set(table(3, 15)[(3, 4, 5)][17])
    for _ in range(2000):
        text = list(rng.choice(sorted(right)))
        text[rng.randrange(len(text))] = rng.choice("0123456789+-*=,")
        changed = "".join(text)
        assert task.grade(PROMPT, changed).correct == (changed in right)


def test_number_sets_are_held_out(task):
    train = {p.answer.numbers for p in task.train}
    held = {p.answer.numbers for p in task.heldout}
    assert not train & held
    assert len(task.heldout) == 256
    assert len(task.train) > 5000


def test_references_are_correct_and_prompts_repeat(task):
    assert all(task.grade(p, p.solution).correct for p in task.heldout)
    again = settings("data=countdown").data
    again.prepare()
    assert again.train == task.train
    assert prompt_text(PROBLEM) == prompt_text(PROBLEM)
    assert len({p.id for p in [*task.train, *task.heldout]}) == len(task.train) + len(task.heldout)


def test_distinct_solutions_ignore_earlier_attempts(task):
    first, second = "3*4=12,12+5=17", "3+4=7,7+5=12;3*4=12,12+5=17"
    assert task.canonical(PROMPT, first) == task.canonical(PROMPT, second)


def test_values_may_be_left_out_only_where_the_data_says_so(task):
    bare = settings("data=countdown", "data.bare=true").data
    bare.prepare()
    for text in ("3*4,12+5", "3*4=12,12+5", "3*4,12+5=17", "3*4=12,12+5=17"):
        assert bare.grade(PROMPT, text).correct
        assert (bare.canonical(PROMPT, text), bare.family(PROMPT, text)) == ("3*4,12+5", "*+")
        assert task.grade(PROMPT, text).correct == (text.count("=") == 2)
    for text in ("3*4,11+5", "3*4,12+5=18", "3*4=11,12+5", "3*4", "3*4,12+5=", "3*4,12+5,"):
        assert not bare.grade(PROMPT, text).correct, text
    assert outcome((15, 15, 1), "15*15,225-1", bare=True) is None
    assert outcome((3, 5, 15), "3-5,15-2", bare=True) is None


@given(st.text(alphabet="345+-*,;2791", max_size=12))
def test_an_attempt_without_values_is_legal_if_it_is_with_them(text):
    legal = {without_values(attempt) for attempts in paths((3, 4, 5)).values() for attempt in attempts}
    assert (outcome((3, 4, 5), text, bare=True) is not None) == (text in legal)


def test_a_thought_does_not_count(task):
    assert task.grade(PROMPT, "<think>3+4=7,7+5=12;junk</think>3*4=12,12+5=17").correct
    assert not task.grade(PROMPT, "<think>3*4=12,12+5=17").correct
    assert not task.grade(PROMPT, "3*4=12,12+5=17<think>").correct


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_drawn_paths_are_legal(count):
    generator = random.Random(count)
    for _ in range(200):
        numbers = tuple(generator.choices(range(1, 16), k=count))
        path = drawn_path(numbers, generator, "-*")
        assert path is not None
        assert outcome(numbers, path[0]) == path[1]
        assert path[0].split("=")[0].strip("0123456789") in "-*"


def test_of_three_numbers_all_paths_are_drawn_in_the_end():
    generator = random.Random(0)
    found = {drawn_path((3, 4, 5), generator) for _ in range(5000)}
    assert found == {(attempt, value) for value, attempts in paths((3, 4, 5)).items() for attempt in attempts}
    assert drawn_path((99, 99), generator, "+") is None


def test_drawn_problems_are_held_out_by_their_numbers():
    task = settings("data=countdown", "data.numbers=5", "data.train_prompts=400", "data.heldout_prompts=50").data
    task.prepare()
    assert (len(task.train), len(task.heldout)) == (400, 50)
    assert all(is_heldout(p.answer.numbers) for p in task.heldout)
    assert not any(is_heldout(p.answer.numbers) for p in task.train)
    assert all(task.grade(p, p.solution).correct for p in [*task.train, *task.heldout])
    assert len({p.id for p in [*task.train, *task.heldout]}) == 450
    assert all(1 <= p.answer.target <= 60 for p in task.train)
    longer = drawn(5, 15, 1, 60, False, 500, 0)
    assert list(longer)[:400] == [p.answer for p in task.train]


def test_problems_that_cannot_be_enumerated_or_drawn():
    with pytest.raises(UserError, match=r"data\.train_prompts: expected a number of problems to draw"):
        settings("data=countdown", "data.numbers=5").data.prepare()
    with pytest.raises(UserError, match=r"of 100000 train problems only \d+ have a target from 1 to 60"):
        settings("data=countdown", "data.train_prompts=100000", "data.highest=5").data.prepare()


def test_levels_are_reported_apart_and_counted_as_configured():
    task = settings("data=levels", "model=tiny_levels_base").data
    task.prepare()
    counts = {name: sum(p.source == name for p in task.heldout) for name in ("three", "four", "five")}
    assert counts == {"three": 80, "four": 80, "five": 80}
    assert {len(p.answer.numbers) for p in task.sources["five"].train} == {5}
    assert task.families


@pytest.mark.parametrize(("level", "families", "adding"), [("three", 1.59, 0.74), ("four", 3.84, 0.86)])
def test_a_level_has_problems_of_several_families_and_some_that_adding_first_does_not_solve(level, families, adding):
    """The numbers of docs/testbed.md."""
    task = settings("data=levels", "model=tiny_levels_base").data.sources[level]
    task.prepare()
    kinds = []
    for prompt in task.heldout:
        solutions = paths(prompt.answer.numbers)[prompt.answer.target]
        kinds.append({task.family(prompt, solution) for solution in solutions})
    assert sum(map(len, kinds)) / 80 == pytest.approx(families, abs=0.01)
    assert sum(any(kind.startswith("+") for kind in those) for those in kinds) / 80 == pytest.approx(adding, abs=0.01)


def test_words_for_language_models():
    task = settings("data=countdown", "data.wording=words").data
    task.prepare()
    prompt = task.heldout[0]
    assert "exactly once" in prompt.text
    assert task.grade(prompt, f"Let me think.\nFirst 1+1.\n{prompt.solution}").correct
    assert not task.grade(prompt, f"{prompt.solution}\nDone.").correct


def test_keys_that_leave_no_problem():
    with pytest.raises(UserError, match=r"widen data\.target_low"):
        settings("data.target_low=98", "data.target_high=98", "data.highest=1").data.prepare()
