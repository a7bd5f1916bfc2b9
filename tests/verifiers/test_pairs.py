"""What counts as equal: every row of pairs.jsonl, which docs/verifiers.md shows, and the same rows turned round."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlrt.verifiers.dress import undressed
from rlrt.verifiers.equality import Undecided, equal_answers
from rlrt.verifiers.forms import form_of
from rlrt.verifiers.math import answer_part, at_sight, equal
from rlrt.verifiers.numerals import number_of
from rlrt.verifiers.units import is_product
from tests.verifiers.pages import page


def pairs_of(name: str):
    return [json.loads(line) for line in (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()]


PAIRS = pairs_of("pairs.jsonl")
MORE = pairs_of("more_pairs.jsonl")
"""Pairs that were written after the rules, to try them: 18 were misjudged at first, 3 of these accepted wrongly."""
ONE_WAY = ("boxes",)
"""Kinds whose given answer is more than an answer."""


def response(given: str) -> str:
    return given if re.search(r"\\(?:boxed|fbox|framebox)", given) else f"So it is \\boxed{{{given}}}."


def judged(expected: str, text: str) -> bool:
    """As the verifier judges it, without its processes."""
    part = answer_part(text)
    known = at_sight(expected, part)
    return equal(expected, part) if known is None else known


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p['kind']}: {p['expected']} | {p['given']}")
def test_a_pair_is_equal_or_not(pair):
    assert judged(pair["expected"], response(pair["given"])) is pair["equal"]


@pytest.mark.parametrize("pair", MORE, ids=lambda p: f"{p['expected']} | {p['given']}")
def test_a_pair_that_no_rule_was_written_for(pair):
    assert judged(pair["expected"], response(pair["given"])) is pair["equal"]


def test_the_pairs_turned_round_accept_nothing_wrong():
    """An answer that is not equal is not equal the other way either; nearly all that are equal are so both ways."""
    turned = [p for p in PAIRS if p["kind"] not in ONE_WAY]
    verdicts = []
    for pair in turned:
        try:
            verdicts.append(judged(pair["given"], response(pair["expected"])))
        except ValueError:  # as an expected answer it cannot be read
            verdicts.append(None)
    assert [p for p, v in zip(turned, verdicts, strict=True) if v and not p["equal"]] == []
    missed = [p for p, v in zip(turned, verdicts, strict=True) if not v and p["equal"]]
    assert missed == []


def test_there_are_enough_of_them():
    kinds = {p["kind"] for p in PAIRS}
    assert len(PAIRS) >= 200
    assert len(kinds) >= 20
    assert len({(p["expected"], p["given"]) for p in PAIRS}) == len(PAIRS)
    for kind in kinds:
        assert {p["equal"] for p in PAIRS if p["kind"] == kind} == {True, False}, kind


def test_the_page_shows_them():
    docs = Path(__file__).parents[2] / "docs" / "verifiers.md"
    assert docs.read_text(encoding="utf-8").endswith(page(PAIRS)), "run python -m tests.verifiers.pages"


@pytest.mark.parametrize(
    "unit",
    ["(", "{", "\\{", "1,", "1 ", "a ", "\\text{a}", "\\pm", "**", "1/", "x=", "\\cup ", "$", "[1,", "√", "1,000,"],
)
def test_a_strange_answer_costs_milliseconds(unit):
    text = unit * (1_900 // len(unit))
    begin = time.perf_counter()
    form_of.__wrapped__(text)
    form_of.__wrapped__(text + "1" + "}" * 900)
    assert time.perf_counter() - begin < 1.0


def test_a_list_that_only_mathematics_can_decide_is_undecided():
    def never(expected, given):
        raise Undecided

    with pytest.raises(Undecided):
        equal_answers("1, x + 1", "1, 1 + x", never)
    assert not equal_answers("1, x + 1", "2, 3", never)


COMMANDS = r"""
\{ \} \frac \frac{1}{2} \sqrt \text{ \text{cm} \left \right \pm \cup \infty \in \begin{pmatrix} \end{pmatrix} \\ \overline{3}
\ldots \le pm dollars listen \boxed{ 10^{ e23 \% \$ \mathbb{R} \mid million seven \langle \rangle \, \!
"""
PIECES = st.sampled_from(
    [*"0123456789.,;:+-*/^_=<>()[]{}|!?%$'\"&~ abexyACD√½°π≤∞±×", *COMMANDS.split(), " and ", " or ", "\\ "]
)


@settings(max_examples=1500)
@given(st.lists(PIECES, max_size=14).map("".join), st.lists(PIECES, max_size=14).map("".join))
def test_no_text_disturbs_the_reading_and_an_answer_equals_itself(expected, given):
    part = answer_part(f"\\boxed{{{given}}}")
    assert at_sight(expected, part) in (True, False, None)
    assert equal_answers(expected, expected, lambda e, g: e == g) is bool(undressed(expected))


@settings(max_examples=500)
@given(*2 * [st.fractions(-(10**12), 10**12, max_denominator=10**6)])
def test_numbers_are_equal_where_their_values_are(one, other):
    assert at_sight(str(one), f"\\boxed{{{other}}}") is (one == other)
    assert at_sight(str(one), f"\\boxed{{\\frac{{{one.numerator}}}{{{one.denominator}}}}}") is True


@settings(max_examples=500)
@given(st.text("abcdefghilmnoprstuv", min_size=3, max_size=9), st.randoms())
def test_letters_in_another_order_are_another_word(word, order):
    letters = list(word)
    order.shuffle(letters)
    other = "".join(letters)
    if not is_product(word) and number_of(word) is None:
        assert at_sight(word, f"\\boxed{{{other}}}") in (word == other, None)
