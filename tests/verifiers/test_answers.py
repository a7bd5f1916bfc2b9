from __future__ import annotations

import pytest

from rlrt.verifiers.answers import after_thinking, boxed, final_answer
from rlrt.verifiers.math import math_verify
from rlrt.verifiers.verifier import ExactMatch


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1", ""),
        ("a\n b \n", "b"),
        ("", ""),
        ("\\fbox{3}", "3"),
        ("\\framebox{6}", "6"),
        ("so \\boxed 2", "2"),
        ("so $\\boxed 2$.", "2"),
        ("so \\boxed -2.5. Done", "-2.5"),
        ("\\boxed C", "C"),
        ("\\boxed 2 + 3", ""),
        ("\\boxed\n{4}", "4"),
        ("\\boxed{1} or \\fbox{2}", "2"),
        ("\\boxed{\\left\\{1,2\\right.}", "\\left\\{1,2\\right."),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("\\boxedx{1}\nb", "b"),
        ("\\boxed{x=\\boxed{5}, y=\\boxed{6}}", "x=\\boxed{5}, y=\\boxed{6}"),
        ("\\boxed{\\fbox{42} + 1}", "\\fbox{42} + 1"),
        ("\\boxed{x = \\boxed{42}}", "42"),
        ("\\boxed{-\\boxed{5}}", "-\\boxed{5}"),
        ("\\boxed{2 \\cdot \\fbox{5}}", "2 \\cdot \\fbox{5}"),
        ("\\boxed{ never closed \\boxed{42}", "42"),
        ("{\\boxed{1}} so \\boxed{\\framebox{2}.}", "2"),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_no_box_is_not_an_empty_box():
    assert boxed("7") is None
    assert boxed("\\boxed{}") == ""


@pytest.mark.parametrize(
    ("text", "left"),
    [("<think>2?</think>3", "3"), ("a</think>b</think>c", "c"), ("<think>never ends \\boxed{3}", ""), ("3", "3")],
)
def test_what_counts_stands_after_the_thought(text, left):
    assert after_thinking(text) == left


def test_exact_match_of_many():
    grades = ExactMatch().start([("1 2", "\\boxed{1  2}"), ("12 3", "\\boxed{1 23}"), ("3", "<think>\\boxed{3}")])()
    assert [(g.correct, g.reward, g.error) for g in grades] == [
        (True, 1.0, False),
        (False, 0.0, False),
        (False, 0.0, False),
    ]


def test_what_a_verifier_reads_of_a_response_can_be_shown():
    assert ExactMatch().extracted("<think>4</think>It is \\boxed{7  a}.") == "7 a"
    reads = math_verify(1.0, 1)
    assert reads.extracted("<think>4</think>3 + 4 = \\boxed{7}") == "\\boxed{7}"
    assert reads.extracted("I do not know") == ""
