from __future__ import annotations

import math

import pytest
import torch

from rlrt.methods.diver import DiversityAdvantage, bleu, formula_diversity, textual_diversity
from tests.helpers import method_of, signals


def test_bleu_by_hand():
    # "a b c" against "a b d": 1-grams 2/3, 2-grams 1/2, 3-grams none of 1 (smoothed to .1); equal lengths
    expected = math.exp(0.02 * math.log(2 / 3) + 0.1 * math.log(1 / 2) + 0.15 * math.log(0.1))
    assert bleu("abc", "abd", 0.1) == pytest.approx(expected, abs=1e-12)
    assert bleu("abcde", "abcde", 0.1) == 1.0
    assert bleu("ab", "abcd", 0.1) == pytest.approx(math.exp(1 - 2), abs=1e-12)  # too short: exp(1 - 4/2)
    assert bleu("", "a", 0.1) == bleu("a", "", 0.1) == 0.0


def test_without_smoothing_one_order_without_a_match_makes_it_nought():
    assert bleu("abc", "abd", 0.0) == 0.0  # no 3-gram in common
    assert bleu("ab", "abd", 0.0) == pytest.approx(
        math.exp(1 - 3 / 2), abs=1e-12
    )  # both orders match: the penalty alone
    assert textual_diversity(["abc", "abd"], 0.0) == [1.0, 1.0]


def test_repeated_words_count_as_often_as_the_reference_has_them():
    # "aaa" against "ab": one of three 1-grams; no 2-gram of two; no 3-gram of one. Longer than the reference: no penalty
    expected = math.exp(0.02 * math.log(1 / 3) + 0.1 * math.log(0.1 / 2) + 0.15 * math.log(0.1))
    assert bleu("aaa", "ab", 0.1) == pytest.approx(expected, abs=1e-12)


def test_diversity_in_a_group():
    assert textual_diversity(["abcde", "abcde"], 0.1) == [0.0, 0.0]
    assert textual_diversity(["abcde"], 0.1) == [0.0]
    same, also, other = textual_diversity(["abcde", "abcde", "vwxyz"], 0.1)
    assert same == also == pytest.approx(other / 2, abs=1e-12)
    assert other == pytest.approx(1 - bleu("vwxyz", "abcde", 0.1), abs=1e-12)


def test_formulas_that_no_sibling_has():
    group = ["so $x^2$ and 3+4=7, then \\(a + b\\)", "3+4=7 only", "no formula"]
    # three formulas, one of them shared: 2/3; one, shared: 0; none: 0
    assert formula_diversity(group) == [pytest.approx(2 / 3), 0.0, 0.0]
    assert formula_diversity(["$x$", "$y$"]) == [0.68, 0.68]  # the cap
    assert formula_diversity(["$x$"]) == [0.0]


def slot(**more):
    base = {"scale_by_std": False, "diversity_coef": 0.5, "diversity_kind": "formula", "diversity_unit": "words"}
    return DiversityAdvantage(**{**base, "diversity_steps": 100, "diversity_smoothing": 0.1, **more})


def test_only_correct_rollouts_are_paid_for_it_and_only_for_some_steps():
    batch = signals([1.0, 1.0, 0.0], [0, 0, 0], [1, 1, 1])
    batch.text_B = ["$x$ $y$ $z$", "$x$", "$u$"]
    # two of three are its own: .667, so rewards 1.333, 1, 0 of mean 7/9
    expected = [4 / 3 - 7 / 9, 1 - 7 / 9, -7 / 9]
    assert slot()(batch).tolist() == pytest.approx(expected, abs=1e-12)
    batch.step = 101
    assert slot()(batch).tolist() == pytest.approx([1 / 3, 1 / 3, -2 / 3], abs=1e-12)


def test_the_spread_of_an_all_correct_group_is_made_full_sized_by_the_standard_deviation():
    """Diversities 0, .1 and .2 at a coefficient of .1: rewards 1, 1.01, 1.02 of standard deviation .01."""
    batch = signals([1.0, 1.0, 1.0], [0, 0, 0], [1, 1, 1])
    for scale, expected in ((True, [-1.0, 0.0, 1.0]), (False, [-0.01, 0.0, 0.01])):
        shaped = slot(scale_by_std=scale, diversity_coef=0.1)
        shaped.diversity = lambda signals: torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)
        assert shaped(batch).tolist() == pytest.approx(expected, abs=2e-4)


def test_tokens_and_words_are_compared_where_asked():
    batch = signals([1.0, 1.0], [0, 0], [3, 3])
    batch.token_BT = torch.tensor([[1, 2, 3], [1, 2, 3]])
    batch.text_B = ["one two three", "four five six"]
    assert slot(diversity_kind="textual", diversity_unit="tokens").diversity(batch).tolist() == [0.0, 0.0]
    assert min(slot(diversity_kind="textual").diversity(batch).tolist()) > 0.4
    assert method_of("diver").advantage.diversity_unit == "tokens"  # on the embedded model
    assert method_of("diver", "model=qwen3_4b").advantage.diversity_unit == "words"
