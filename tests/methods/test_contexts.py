"""What each kind of teacher context shows, on hand-made groups; how contexts are written, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rlrt.errors import UserError
from rlrt.methods.contexts import (
    CONFIGURED,
    Answer,
    Default,
    Hint,
    Reference,
    ReferenceAlone,
    Sibling,
    beginning,
    configured,
    context_of,
    likeness,
    pairs_of,
)
from rlrt.types import Generation, Grade, Prompt, Rollout
from tests.helpers import settings

PROMPT = Prompt("p", "q", None, solution="one two three four", final="4", hint="count")


def made(correct: bool, ids: list[int], sample: int, group: int = 0, prompt: Prompt = PROMPT) -> Rollout:
    """A rollout whose text spells its tokens."""
    generation = Generation(ids, torch.zeros(len(ids)), torch.zeros(len(ids)), truncated=False)
    text = " ".join(map(str, ids))
    return Rollout(prompt, group, sample, 100 + sample, [0], generation, text, Grade(correct, float(correct)))


def group_of(*answers: tuple[bool, list[int]]) -> list[Rollout]:
    return [made(correct, ids, sample) for sample, (correct, ids) in enumerate(answers)]


GROUP = group_of(
    (True, [1, 2, 3]),
    (False, [7, 7]),
    (True, [1, 2, 3]),
    (True, [4, 5]),
    (True, [1, 2, 6, 8]),
    (False, [9]),
)
A, B, C, W7, W9 = "1 2 3", "4 5", "1 2 6 8", "7 7", "9"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        # rollout 0 has the text of rollout 2: neither is shown it
        ("sibling", [B, A, B, A, A, A]),
        ("sibling:1", [C, A, C, A, A, A]),
        ("sibling:shortest", [B, B, B, A, B, B]),
        ("sibling:longest", [C, C, C, C, A, C]),
        # pairs of neighbours, the beginning as -1: A {-1 1, 1 2, 2 3}, B {-1 4, 4 5}, C {-1 1, 1 2, 2 6, 6 8}
        # A and C share 2 of 3 and 4: 4/7; B shares nothing with A and C; the wrong ones share nothing with any: the first
        ("sibling:least_like_mine", [B, A, B, A, B, A]),
        ("wrong_sibling", [W7, W9, W7, W7, W7, W7]),
        ("wrong_sibling:shortest", [W9, W9, W9, W9, W9, W7]),
        ("reference", ["one two three four"] * 6),
        ("reference@0.5", ["one two"] * 6),
        ("reference_alone@0.75", ["one two three"] * 6),
        ("answer", ["4"] * 6),
        ("hint", ["count"] * 6),
        ("sibling:longest@0.3", ["1 2", "1 2", "1 2", "1 2", "1", "1 2"]),
    ],
)
def test_which_text_each_rollout_is_shown(written, expected):
    shown = configured(written, "plain").shown(GROUP)
    assert shown == expected
    if "@" not in written:
        assert all(text != rollout.text for text, rollout in zip(shown, GROUP, strict=True))


def test_a_random_sibling_is_a_function_of_the_rollouts_seed():
    context = configured("sibling:random", "plain")
    group = group_of(*((True, [n]) for n in range(5)))
    shown = context.shown(group)
    assert all(text != rollout.text for text, rollout in zip(shown, group, strict=True))
    assert context.shown(group) == shown
    assert list(reversed(context.shown(group[::-1]))) == shown  # the places in the list do not matter
    counts = dict.fromkeys("1234", 0)
    for seed in range(400):
        counts[context.shown([dataclasses.replace(group[0], seed=seed), *group[1:]])[0]] += 1
    # 400 draws from four: 100 each, standard deviation 8.7
    assert all(65 <= count <= 135 for count in counts.values())


@pytest.mark.parametrize(("rule", "expected"), [("plain", None), ("self", A), ("reference", PROMPT.solution)])
def test_correct_rollouts_that_all_have_one_text_are_alone(rule, expected):
    group = group_of((True, [1, 2, 3]), (True, [1, 2, 3]), (False, [7, 7]))
    context = configured("sibling", rule)
    assert context.shown(group) == [expected, expected, A]
    assert context.own(group) == [True, True, False]


def test_a_groups_only_correct_rollout_has_no_sibling_of_its_text():
    group = group_of((True, [1, 2, 3]), (False, [7, 7]))
    assert configured("sibling", "plain").own(group) == [False, False]
    # white space around a text makes no other solution
    spaced = [dataclasses.replace(group[0], text=" 1 2 3\n", sample=5), *group]
    assert configured("sibling", "plain").own(spaced) == [True, True, False]
    # two equal wrong ones, and a third
    wrong = group_of((False, [7]), (False, [7]), (True, [1]))
    assert configured("wrong_sibling", "plain").shown(wrong) == [None, None, "7"]


def test_a_solution_of_the_data_that_is_the_rollouts_own():
    prompt = dataclasses.replace(PROMPT, solution="1 2 3")
    group = [made(True, [1, 2, 3], 0, prompt=prompt), made(True, [4], 1, prompt=prompt)]
    assert configured("reference", "plain", hides_own=True).shown(group) == [None, "1 2 3"]
    assert configured("reference", "plain", hides_own=True).own(group) == [True, False]
    # a dense term learns from the text itself
    assert configured("reference", "plain").shown(group) == ["1 2 3", "1 2 3"]
    alone = [group[0], made(False, [5], 1, prompt=prompt)]
    assert configured("sibling", "reference").shown(alone) == [None, "1 2 3"]


def test_shorter_siblings_the_longest_first():
    context = configured("sibling:longest", "plain")
    assert context.shorter(GROUP, 0) == [B]  # C is named; A is its own text
    assert context.shorter(GROUP, 1) == [A, A, B]
    assert context.shorter(GROUP, 3) == [A, A]
    assert configured("sibling:shortest", "plain").shorter(GROUP, 3) == []
    assert configured("reference", "plain").shorter(GROUP, 0) == []


def test_the_beginning_of_a_text_ends_at_a_piece():
    text = "13-5=8,12-8=4"  # 11 pieces: 13 - 5 = 8 , 12 - 8 = 4
    assert [beginning(text, share) for share in (0.01, 0.5, 0.6, 1.0)] == ["13", "13-5=8,", "13-5=8,12", text]
    assert beginning("So  x = 12.\nThen\n", 0.5) == "So  x = 12"  # 4 of 7 pieces, the last one white space
    assert beginning("a b c d e f g h i j", 0.3) == "a b c"  # 0.3 * 10 is a little over 3 in floating point
    assert beginning("", 0.5) == ""


def test_likeness_by_hand():
    first, second = (pairs_of(made(True, ids, 0)) for ids in ([1, 2, 3], [1, 2, 6, 8]))
    assert likeness(first, second) == 2 * 2 / (3 + 4)
    assert likeness(first, first) == 1
    assert likeness(first, pairs_of(made(True, [3, 2, 1], 0))) == 0
    assert likeness(set(), set()) == 0


def test_how_contexts_are_written():
    assert context_of("default") == Default()
    assert context_of("correct") == context_of("sibling") == context_of("sibling:first") == Sibling()
    assert context_of("wrong:2") == context_of("wrong_sibling:2") == Sibling(correct=False, number=2)
    assert context_of("sibling:random@0.25") == Sibling(choice="random", share=0.25)
    assert context_of("reference@1") == Reference()
    assert (context_of("reference_alone"), context_of("answer"), context_of("hint")) == (
        ReferenceAlone(), Answer(), Hint(),
    )  # fmt: skip
    assert [context_of(text) for text in ("", "refrence", "Sibling", "sibling shortest", None, 3)] == [None] * 6


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("refrence", "expected one of sibling, .*Did you mean 'reference'"),
        ("correct", "expected one of sibling"),
        ("default", "expected one of sibling"),
        ("sibling:shortst", "expected one of first, shortest, longest, least_like_mine, random or a number"),
        ("sibling:", "or a number after sibling:"),
        ("reference:shortest", "reference takes no choice"),
        ("answer@0.5", "answer is shown whole"),
        ("hint@0.5", "hint is shown whole"),
        ("reference@0", "expected a share above 0 and at most 1"),
        ("reference@1.5", "expected a share above 0 and at most 1"),
        ("reference@nan", "expected a share above 0 and at most 1"),
        ("reference@half", "expected a share above 0 and at most 1"),
        ("reference@", "expected a share above 0 and at most 1"),
        ("sibling:7", "needs groups of at least 9 rollouts, got train.rollouts_per_prompt=8"),
    ],
)
def test_a_context_without_a_meaning_is_refused_at_load(written, reason):
    with pytest.raises(UserError, match=rf"teacher\.context: .*{reason}"):
        settings("method=rlrt", f"teacher.context='{written}'")


def test_a_context_that_the_method_does_not_read_is_refused():
    with pytest.raises(UserError, match="method rlcsd names its teacher contexts itself, so 'reference' would change"):
        settings("method=rlcsd", "teacher.context=reference")
    assert (
        settings("method=grpo", "teacher.context=reference").teacher.context == "reference"
    )  # it has no teacher at all


@pytest.mark.parametrize("context", [*CONFIGURED, "sibling:least_like_mine", "sibling:random@0.5", "reference@0.25"])
@pytest.mark.parametrize("crossed", [["method.direction=forward"], ["method.gate=all"]])
def test_contexts_cross_with_direction_and_gate(context, crossed):
    assert settings("method=rlrt", f"teacher.context={context}", *crossed).teacher.context == context
