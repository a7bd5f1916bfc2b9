"""What graders give: finite floats and bools pass, all else is an error of that answer."""

from __future__ import annotations

import logging
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from rlrt.errors import UserError
from rlrt.sampling.draw import Draw, carries_signal, is_mixed, rollout_metrics
from rlrt.sampling.grading import ERROR, Door
from rlrt.types import Grade, finite, truth
from tests.helpers import rollout

NAN = float("nan")


@pytest.mark.parametrize(
    ("reward", "number"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.25, 0.25),
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3.0),
        (np.bool_(True), 1.0),
        (np.float16(2), 2.0),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(2), 2.0),
        (Decimal("1.5"), 1.5),
        (Fraction(1, 4), 0.25),
        (-1e18, -1e18),
        (NAN, None),
        (float("inf"), None),
        (-float("inf"), None),
        (np.float64("nan"), None),
        (torch.tensor(NAN), None),
        (1e19, None),
        (10**400, None),
        (None, None),
        ("1.0", None),
        (b"1", None),
        (1 + 0j, None),
        ([1.0], None),
        ({}, None),
        (np.array([1.0, 2.0]), None),
        (torch.tensor([1.0, 2.0]), None),
    ],
    ids=repr,
)
def test_a_reward_is_a_finite_float_or_an_error(reward, number):
    assert finite(reward) == number
    grade = Door("Mine").settled(Grade(True, reward))
    if number is None:
        assert grade == ERROR
    else:
        assert (type(grade.reward), grade.reward, grade.correct, grade.error) == (float, number, True, False)


def test_a_verdict_is_a_bool_or_an_error():
    good = [True, False, 1, 0, np.bool_(True), torch.tensor(False), np.int32(1), 0.0]
    assert [truth(v) for v in good] == [True, False, True, False, True, False, True, False]
    bad = [
        None,
        NAN,
        "yes",
        "False",
        np.array([True, False]),
        (False, "why"),
        [],
        {},
        {"correct": False},
        0.5,
        2,
        object(),
    ]
    assert [truth(v) for v in bad] == [None] * len(bad)
    assert Door("Mine").settled(Grade((False, "why"), 1.0)) == ERROR
    assert Door("Mine").settled(Grade(None, 1.0)) == ERROR
    assert type(Door("Mine").settled(Grade(np.bool_(1), np.float32(1))).correct) is bool


def test_an_error_carries_no_reward_and_parts_must_be_finite():
    door = Door("Mine")
    assert door.settled(Grade(True, NAN, error=True, parts={"a": NAN})) == ERROR
    assert door.settled(Grade(True, 1.0, parts={"a": NAN})) == ERROR
    assert door.settled(Grade(True, 1, parts={"a": np.float32(0.5)})) == Grade(True, 1.0, parts={"a": 0.5})


@pytest.mark.parametrize("name", ["mean", "correct_share", "a/b", "", "a b", 3])
def test_a_part_needs_a_name_that_can_be_logged(name):
    with pytest.raises(UserError, match=r"Grade\.parts from Mine\.grade"):
        Door("Mine").settled(Grade(True, 1.0, parts={name: 1.0}))


def test_what_is_no_grade_is_refused():
    with pytest.raises(UserError, match=r"expected a rlrt\.types\.Grade from Mine\.grade, got 1"):
        Door("Mine").settled(1)


def test_a_grader_that_raises_is_an_error_of_that_answer_and_is_told_once(caplog):
    def broken():
        raise ValueError("cannot grade")

    door = Door("Mine")
    with caplog.at_level(logging.WARNING):
        grades = [door.begin(start)() for start in (lambda: broken, broken, lambda: lambda: Grade(True, 1.0))]
    assert grades == [ERROR, ERROR, Grade(True, 1.0)]
    (record,) = caplog.records
    assert "data: Mine.grade raised ValueError: cannot grade; such a response is left out" in record.getMessage()


def test_a_users_error_is_not_an_answers():
    def refused():
        raise UserError("data.verifier: no")

    for start in (refused, lambda: refused):
        with pytest.raises(UserError, match="no"):
            Door("Mine").begin(start)()


def graded(*grades):
    """Rollouts in groups of two, 2 tokens each."""
    made = []
    for i, grade in enumerate(grades):
        one = rollout(i // 2, i % 2, False)
        one.grade = grade
        made.append(one)
    return made


def test_errors_are_outside_every_mean():
    """Rewards 1, error | 0, -1 | error, error | 1, 1: five were judged, sum 2, three correct."""
    grades = [
        Grade(True, 1.0),
        ERROR,
        Grade(False, 0.0),
        Grade(False, -1.0),
        ERROR,
        ERROR,
        Grade(True, 1.0),
        Grade(True, 1.0),
    ]
    grades[0] = Grade(True, 1.0, parts={"short": -0.5})
    grades[2] = Grade(False, 0.0, parts={"short": -0.25})
    rollouts = graded(*grades)
    numbers = rollout_metrics(Draw(rollouts, rollouts, 16), 2)
    assert numbers["reward/mean"] == 2 / 5
    assert numbers["reward/correct_share"] == 3 / 5
    assert numbers["reward/verifier_error_share"] == 3 / 8
    assert numbers["reward/short"] == -0.375  # of the two that have it
    assert numbers["group/all_correct_share"] == 2 / 4  # the first group's only judged one is correct, and the last
    assert numbers["group/all_wrong_share"] == 1 / 4
    assert numbers["group/no_signal_share"] == 3 / 4  # only 0, -1 differ
    assert not is_mixed(rollouts[:2])
    assert not carries_signal(rollouts[4:6])


def test_where_nothing_was_judged_the_mean_is_nought():
    rollouts = graded(ERROR, ERROR)
    numbers = rollout_metrics(Draw(rollouts, rollouts, 4), 2)
    assert (numbers["reward/mean"], numbers["reward/verifier_error_share"]) == (0.0, 1.0)
    assert numbers["group/all_wrong_share"] == numbers["group/all_correct_share"] == 0.0
