from __future__ import annotations

import pytest
import torch

from rlrt.methods.contexts import Answer, Reference, ReferenceAlone, Sibling
from rlrt.model.load import tokenizer_of
from rlrt.model.prompting import PromptBuilder
from rlrt.model.twin import twin
from rlrt.paths import EMBEDDED
from rlrt.training.teacher import Teacher, holds_copy
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


def test_a_reference_alone_stands_where_the_question_is_not():
    prompt = Prompt(id="1", text="4:13 12 5", answer=None, solution="5+12=17,17-13=4")
    tokenizer = tokenizer_of(str(EMBEDDED), None)
    builder = PromptBuilder(tokenizer, "plain", "{prompt}>", None, "{prompt}|{solution}", bos="always")
    spelled = [
        tokenizer.decode(builder.teacher(prompt, context.text_of(prompt), context.question(prompt)))
        for context in (Reference(), ReferenceAlone())
    ]
    # the question is the only difference
    assert spelled == ["<bos>4:13 12 5|5+12=17,17-13=4>", "<bos>|5+12=17,17-13=4>"]


def linear(value: float) -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    return model


def set_to(model, value):
    torch.nn.init.constant_(model.weight, value)


def weight(teacher):
    return float(teacher.model.weight.detach())


def teacher(student, weights, steps, rate, rerun=True):
    beside = twin(student, weights != "frozen") if holds_copy(weights, rerun) else None
    return Teacher(student, beside, weights, steps, rate)


def test_weights_by_name():
    student = linear(0.0)
    made = {w: teacher(student, w, 2, 0.25) for w in ("live", "old", "snapshot", "ema", "frozen")}
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        for one in made.values():
            one.begin_step(step)
        set_to(student, value)
        for one in made.values():
            one.follow()
    # ema: 0 -> .25 -> .25 * .75 + .5 = .6875 -> .6875 * .75 + .75; snapshot copied at steps 1 and 3 (then the student was 2)
    expected = {"live": 3.0, "old": 2.0, "snapshot": 2.0, "ema": 0.6875 * 0.75 + 0.75, "frozen": 0.0}
    assert {w: weight(t) for w, t in made.items()} == expected


def test_old_needs_a_copy_only_where_it_is_asked_again():
    student = linear(0.0)
    assert teacher(student, "old", 1, 0.1, rerun=False).model is student
    assert teacher(student, "old", 1, 0.1).model is not student
    assert teacher(student, "live", 1, 0.1).model is student


def test_copies_take_no_gradient_and_only_moving_ones_are_saved():
    student = linear(0.0)
    for weights, saved in (("ema", True), ("snapshot", True), ("frozen", False), ("old", False)):
        made = teacher(student, weights, 1, 0.1)
        assert not any(p.requires_grad for p in made.model.parameters())
        assert (made.state() is not None) == saved


class Adapted(torch.nn.Module):
    """A layer of one base weight, and an adapter of rank 1 with factors of one number each."""

    def __init__(self):
        super().__init__()
        self.base_layer = torch.nn.Linear(1, 1, bias=False)
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(1, 1, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(1, 1, bias=False)})

    def get_delta_weight(self, name):
        return self.lora_B[name].weight @ self.lora_A[name].weight

    def factors(self):
        return float(self.lora_A["default"].weight.detach()), float(self.lora_B["default"].weight.detach())


def test_factors_of_adapters_are_averaged_not_their_product():
    student = torch.nn.Sequential(Adapted())
    layer = student[0]
    torch.nn.init.constant_(layer.lora_A["default"].weight, 2.0)
    torch.nn.init.constant_(layer.lora_B["default"].weight, 0.0)
    layer.base_layer.weight.requires_grad_(False)
    made = {w: teacher(student, w, 2, 0.25) for w in ("old", "snapshot", "ema", "frozen")}
    assert isinstance(made["frozen"].model[0], torch.nn.Linear)  # the base layer: no adapter at all
    for w, one in made.items():
        shared = one.model[0] if w == "frozen" else one.model[0].base_layer
        assert shared.weight is layer.base_layer.weight
        assert not any(p.requires_grad for p in one.model.parameters())
    for one in made.values():
        one.begin_step(1)
    torch.nn.init.constant_(layer.lora_A["default"].weight, 4.0)
    torch.nn.init.constant_(layer.lora_B["default"].weight, 8.0)
    for one in made.values():
        one.follow()
    # A: 2 * .75 + 4 * .25 = 2.5; B: 0 * .75 + 8 * .25 = 2; their product is 5
    assert made["ema"].model[0].factors() == (2.5, 2.0)
    # the averaged product is 0 * .75 + 32 * .25 = 8: it is r (1 - r) (B - B_T) (A - A_T) = 3/16 * 8 * 2 = 3 away
    assert 2.5 * 2.0 == 8.0 - 3.0
    assert made["old"].model[0].factors() == made["snapshot"].model[0].factors() == (2.0, 0.0)
    made["snapshot"].begin_step(2)
    made["old"].begin_step(2)
    assert (made["old"].model[0].factors(), made["snapshot"].model[0].factors()) == ((4.0, 8.0), (2.0, 0.0))
    assert (
        {*made["ema"].state()} == {*made["snapshot"].state()} == {"0.lora_A.default.weight", "0.lora_B.default.weight"}
    )
    assert made["frozen"].state() is made["old"].state() is None
