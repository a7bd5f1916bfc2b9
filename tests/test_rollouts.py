from __future__ import annotations

import pytest

from rlrt.rollouts import overlong_penalty, refill_prompts, step_prompts, with_refills
from rlrt.types import Prompt
from tests.helpers import rollout

PROMPTS = [Prompt(id=str(i), text=str(i), answer=None) for i in range(10)]


def ids(prompts):
    return [int(p.id) for p in prompts]


def test_every_prompt_once_before_any_comes_again():
    drawn = [i for step in range(1, 6) for i in ids(step_prompts(PROMPTS, 0, step, 4))]
    assert sorted(drawn[:10]) == list(range(10))
    assert sorted(drawn[10:20]) == list(range(10))
    assert drawn[:10] != drawn[10:20]


def test_prompts_are_a_function_of_seed_and_step():
    assert step_prompts(PROMPTS, 1, 7, 4) == step_prompts(PROMPTS, 1, 7, 4)
    assert step_prompts(PROMPTS, 1, 7, 4) != step_prompts(PROMPTS, 2, 7, 4)
    assert refill_prompts(PROMPTS, 1, 7, 1, 3) == refill_prompts(PROMPTS, 1, 7, 1, 3)
    assert refill_prompts(PROMPTS, 1, 7, 1, 3) != refill_prompts(PROMPTS, 1, 7, 2, 3)


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (36, 0.0), (37, -1 / 12), (42, -0.5), (48, -1.0), (60, -1.0)]
)
def test_overlong_penalty_by_hand(length, expected):
    assert overlong_penalty(length, 48, 12) == pytest.approx(expected, abs=1e-15)
    assert overlong_penalty(length, 48, 0) == 0.0


class Scripted:
    """A sampler whose groups are scripted: True gives one correct of two, False none."""

    def __init__(self, *calls):
        self.calls, self.streams, self.seed = list(calls), [], 0
        self.task = type("Task", (), {"train": PROMPTS})

    def __call__(self, prompts, samples, stream, temperature=None, first_group=0):
        self.streams.append(stream)
        signal = self.calls.pop(0)
        assert len(signal) == len(prompts)
        return [rollout(i, g, s and g == 0) for i, s in enumerate(signal) for g in range(samples)]


def test_groups_without_signal_are_replaced_in_place():
    sampler = Scripted([True, False, False], [False, True], [False])
    rollouts, replaced = with_refills(sampler, PROMPTS[:3], 2, 5, 2)
    assert sampler.streams == [("train", 5), ("refill", 5, 1), ("refill", 5, 2)]
    assert replaced == 1
    assert [r.group for r in rollouts] == [0, 0, 1, 1, 2, 2]
    assert [r.grade.correct for r in rollouts] == [True, False, False, False, True, False]


def test_no_refill_where_none_is_needed():
    sampler = Scripted([True, True])
    assert with_refills(sampler, PROMPTS[:2], 2, 1, 3)[1] == 0
