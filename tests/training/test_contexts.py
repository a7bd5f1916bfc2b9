from __future__ import annotations

import pytest
import torch

from rlrt.methods.contexts import Answer, Reference, Sibling
from rlrt.training.teacher import Teacher
from rlrt.types import Prompt
from tests.helpers import rollout


def test_first_success_and_the_second_for_the_first():
    group = [rollout(0, 0, False, "a"), rollout(0, 1, True, "b"), rollout(0, 2, True, "c"), rollout(0, 3, True, "d")]
    assert Sibling().texts(group) == ["b", "c", "b", "b"]


@pytest.mark.parametrize(("rule", "expected"), [("plain", None), ("self", "b"), ("reference", "ref")])
def test_a_groups_only_correct_rollout(rule, expected):
    group = [rollout(0, 0, False, "a"), rollout(0, 1, True, "b")]
    assert Sibling(alone=rule).texts(group) == ["b", expected]


def test_groups_do_not_mix_and_may_have_none():
    rollouts = [
        rollout(0, 0, True, "a"),
        rollout(1, 0, False, "b"),
        rollout(1, 1, False, "c"),
        rollout(0, 1, False, "d"),
    ]
    assert Sibling().texts(rollouts) == [None, None, None, "a"]


def test_what_the_data_offers_the_teacher():
    prompt = Prompt(id="1", text="q", answer=None, solution="s", final="f")
    assert Reference().text_of(prompt) == "s"
    assert Answer().text_of(prompt) == "f"
    states = Prompt(id="1", text="q = f", answer=None, solution="s", final="f", states_answer=True)
    assert Answer().text_of(states) == "s"  # the answer alone would say nothing new
    assert Answer().text_of(Prompt(id="1", text="q", answer=None)) is None


def linear(value: float) -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


def set_to(model, value):
    torch.nn.init.constant_(model.weight, value)


def weight(teacher):
    return float(teacher.model.weight.detach())


def test_weights_by_name():
    student = linear(0.0)
    made = {w: Teacher(student, w, 2, 0.25, rerun=True) for w in ("live", "old", "snapshot", "ema", "frozen")}
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        for teacher in made.values():
            teacher.begin_step(step)
        set_to(student, value)
        for teacher in made.values():
            teacher.follow()
    # ema: 0 -> .25 -> .25 * .75 + .5 = .6875 -> .6875 * .75 + .75; snapshot copied at steps 1 and 3 (then the student was 2)
    expected = {"live": 3.0, "old": 2.0, "snapshot": 2.0, "ema": 0.6875 * 0.75 + 0.75, "frozen": 0.0}
    assert {w: weight(t) for w, t in made.items()} == expected


def test_old_needs_a_copy_only_where_it_is_asked_again():
    student = linear(0.0)
    assert Teacher(student, "old", 1, 0.1, rerun=False).model is student
    assert Teacher(student, "old", 1, 0.1, rerun=True).model is not student
    assert Teacher(student, "live", 1, 0.1, rerun=True).model is student


def test_copies_take_no_gradient_and_only_moving_ones_are_saved():
    student = linear(0.0)
    for weights, saved in (("ema", True), ("snapshot", True), ("frozen", False), ("old", False)):
        teacher = Teacher(student, weights, 1, 0.1, rerun=True)
        assert not any(p.requires_grad for p in teacher.model.parameters())
        assert (teacher.state() is not None) == saved
