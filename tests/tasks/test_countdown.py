from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlrt.errors import UserError
from rlrt.tasks.countdown import Countdown, Problem, outcome, paths, prompt_text, table
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
