from __future__ import annotations

import pytest
import torch

from rlrt.errors import UserError
from rlrt.methods.grpo import group_advantage
from rlrt.sampling.draw import rollout_metrics, with_refills
from rlrt.sampling.sampler import overlong_penalty, refill_prompts, step_prompts
from rlrt.types import Grade, Prompt
from tests.helpers import rollout

PROMPTS = [Prompt(id=str(i), text=str(i), answer=None) for i in range(10)]


def ids(prompts):
    return [int(p.id) for p in prompts]


def test_a_step_and_an_epoch_never_repeat_a_prompt():
    drawn = [ids(step_prompts(PROMPTS, 0, step, 4)) for step in range(1, 7)]
    for epoch in range(3):  # two whole steps of 4 fit into 10 prompts; the other two wait for the next epoch's order
        both = drawn[2 * epoch] + drawn[2 * epoch + 1]
        assert len(set(both)) == 8
    assert drawn[:2] != drawn[2:4]
    assert {i for step in range(1, 60) for i in ids(step_prompts(PROMPTS, 0, step, 4))} == set(range(10))


def test_a_step_needs_as_many_prompts():
    with pytest.raises(UserError, match=r"train\.prompts_per_step: a step takes 11 different prompts"):
        step_prompts(PROMPTS, 0, 1, 11)


def test_prompts_are_a_function_of_seed_and_step():
    assert step_prompts(PROMPTS, 1, 7, 4) == step_prompts(PROMPTS, 1, 7, 4)
    assert step_prompts(PROMPTS, 1, 7, 4) != step_prompts(PROMPTS, 2, 7, 4)
    assert refill_prompts(PROMPTS, 1, 7, 1, 3, set()) == refill_prompts(PROMPTS, 1, 7, 1, 3, set())
    assert refill_prompts(PROMPTS, 1, 7, 1, 3, set()) != refill_prompts(PROMPTS, 1, 7, 2, 3, set())
    assert set(ids(refill_prompts(PROMPTS, 1, 7, 1, 9, {"1", "2"}))) == {0, 3, 4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (36, 0.0), (37, -1 / 12), (42, -0.5), (48, -1.0), (60, -1.0)]
)
def test_overlong_penalty_by_hand(length, expected):
    assert overlong_penalty(length, 48, 12, 1.0) == pytest.approx(expected, abs=1e-15)
    assert overlong_penalty(length, 48, 12, 0.5) == pytest.approx(expected / 2, abs=1e-15)
    assert overlong_penalty(length, 48, 0, 1.0) == 0.0


def test_at_half_the_weight_the_penalty_is_dapos():
    """One group by DAPO's rewards of 1 and -1, and by ours of 1 and 0: a right answer, one that ends at the limit, a wrong one,
    and a wrong one three tokens into the cache. Theirs: 1, 0, -1, -1.25; ours are (theirs + 1) / 2: 1, .5, 0, -.125."""
    lengths, correct = [10, 48, 10, 39], [True, True, False, False]
    theirs = [(1.0 if c else -1.0) + overlong_penalty(n, 48, 12, 1.0) for n, c in zip(lengths, correct, strict=True)]
    ours = [float(c) + overlong_penalty(n, 48, 12, 0.5) for n, c in zip(lengths, correct, strict=True)]
    assert (theirs, ours) == ([1.0, 0.0, -1.0, -1.25], [1.0, 0.5, 0.0, -0.125])
    both = [
        group_advantage(torch.tensor(r, dtype=torch.float64), torch.zeros(4, dtype=torch.long), True)
        for r in (theirs, ours)
    ]
    assert torch.allclose(*both, atol=1e-5)  # their spread is divided out, but for 1e-6


class Scripted:
    """A sampler whose groups are scripted: how many of each group's two rollouts are correct."""

    def __init__(self, *calls, penalty=0.0):
        self.calls, self.streams, self.seed, self.penalty = list(calls), [], 0, penalty
        self.task = type("Task", (), {"train": PROMPTS})

    def __call__(self, prompts, samples, stream, sampling=None, load=True):
        self.streams.append(stream)
        correct = self.calls.pop(0)
        assert len(correct) == len(prompts)
        made = [rollout(i, g, g < c) for i, c in enumerate(correct) for g in range(samples)]
        for r in made[::2]:
            r.grade = Grade(r.grade.correct, r.grade.reward + self.penalty)
        return made


def test_all_wrong_and_all_correct_groups_are_replaced_in_place():
    sampler = Scripted([1, 0, 2], [0, 1], [0])
    draw = with_refills(sampler, PROMPTS[:3], 2, 5, 2)
    assert sampler.streams == [("train", 5), ("refill", 5, 1), ("refill", 5, 2)]
    assert (draw.replaced, draw.attempts, draw.sampled) == (1, 2, 24)  # 12 rollouts of 2 tokens
    assert [r.group for r in draw.rollouts] == [0, 0, 1, 1, 2, 2]
    assert [r.grade.correct for r in draw.rollouts] == [True, False, True, False, True, True]
    metrics = rollout_metrics(draw, 2)
    assert metrics["reward/correct_share"] == 0.5  # of the first draw: compares with a method that does not refill
    assert (metrics["group/all_wrong_share"], metrics["group/all_correct_share"]) == (1 / 3, 1 / 3)
    assert metrics["rollout/tokens"] == 24


def test_verdicts_decide_not_shaped_rewards():
    """A length penalty makes rewards differ in a group that is all wrong: it is replaced all the same."""
    sampler = Scripted([0], [1], penalty=-0.5)
    draw = with_refills(sampler, PROMPTS[:1], 2, 1, 1)
    assert draw.replaced == 1


def test_no_refill_where_none_is_needed():
    sampler = Scripted([1, 1])
    assert with_refills(sampler, PROMPTS[:2], 2, 1, 3).replaced == 0
    assert sampler.streams == [("train", 1)]


def sampled_by(
    responses, grade=lambda prompt, text: Grade(True, 1.0), truncated=False, grade_truncated=False, heard=lambda: None
):
    """Two rollouts of two prompts by an engine that yields these (prompt, sample, token ids, log-probabilities)."""
    import torch

    from rlrt.engines.engine import Engine
    from rlrt.sampling.sampler import Sampler
    from rlrt.tasks.base import Task
    from rlrt.types import Generation

    class Short(Engine):
        max_new_tokens, temperature, exact = 4, 1.0, True

        def load(self, model, stop_ids, version):
            pass

        def sample(self, prompts, seeds, sampling=None):
            for i, g, ids, logp in responses:
                yield i, g, Generation(ids, torch.zeros(logp), torch.zeros(len(ids)), truncated=truncated)

    class Mine(Task):
        pass

    Mine.grade = lambda self, prompt, text: grade(prompt, text)
    builder = type("Builder", (), {"opening": "", "student": lambda self, prompt: [1]})()
    given = {"tokenizer": None, "model": None, "stop_ids": [], "version": 0, "text": lambda self, ids: "x"}
    policy = type("Policy", (), given)()
    engine = Short()
    if grade_truncated:  # else the class leaves it to the interface
        engine.grade_truncated = True
    sampler = Sampler(engine, policy, builder, Mine(), seed=0)
    sampler.heard = heard
    return sampler(PROMPTS[:2], 2, ("test",))


WHOLE = [(i, g, [7, 8], 2) for i in range(2) for g in range(2)]


def test_each_response_is_heard_when_it_is_there():
    order = []
    sampled_by((order.append("sampled") or one for one in WHOLE), heard=lambda: order.append("heard"))
    assert order == ["sampled", "heard"] * 4


def test_a_truncated_response_is_wrong_and_ungraded_unless_its_grading_is_asked_for():
    asked = []

    def grade(prompt, text):
        asked.append(prompt.id)
        return Grade(prompt.id == "0", 0.25)

    cut = [r.grade for r in sampled_by(WHOLE, grade, truncated=True)]
    assert (cut, asked) == ([Grade(False, 0.0)] * 4, [])
    graded = [r.grade for r in sampled_by(WHOLE, grade, truncated=True, grade_truncated=True)]
    assert graded == [Grade(True, 0.25)] * 2 + [Grade(False, 0.25)] * 2
    assert asked == ["0", "0", "1", "1"]


def test_the_alarm_of_truncated_rollouts_says_what_they_count_as_and_what_to_do():
    from rlrt.execution.monitor import ALARMS, worded

    said = [
        next(a for a in worded(ALARMS, graded) if a.metric == "rollout/truncated_share") for graded in (False, True)
    ]
    assert [a.rings(share) for a in said for share in (0.5, 0.51)] == [False, True] * 2
    for word in (
        "counts as wrong",
        "engine.max_new_tokens",
        "model.stop_tokens",
        "an example",
        "engine.grade_truncated=true",
    ):
        assert word in said[0].sentence
    assert "wrong" not in said[1].sentence
    assert len(worded(ALARMS, True)) == len(ALARMS)


def test_responses_may_come_in_any_order():
    rollouts = sampled_by(WHOLE[::-1])
    assert [(r.group, r.sample) for r in rollouts] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("responses", "says"),
    [
        (WHOLE[:3], r"^engine: expected a response to every prompt and seed, 4 in all, got 3 from Short\.sample"),
        ([(0, 0, [], 0), *WHOLE[1:]], r"^engine: expected at least one token, .* got 0 tokens"),
        ([(0, 0, [7, 8], 1), *WHOLE[1:]], r"got 2 tokens, 1 log-probabilities and 2 entropies from Short\.sample"),
    ],
)
def test_what_an_engine_yields_is_checked(responses, says):
    with pytest.raises(UserError, match=says):
        sampled_by(responses)


@pytest.mark.parametrize("grade", [True, 1.0, None])
def test_what_a_task_grades_is_checked(grade):
    with pytest.raises(UserError, match=r"^data: expected a rlrt\.types\.Grade from Mine\.grade, got (True|1\.0|None)"):
        sampled_by(WHOLE, lambda prompt, text: grade)
