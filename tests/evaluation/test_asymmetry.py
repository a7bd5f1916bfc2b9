"""D by context: the kinds of tokens, the tables by hand, and one run's numbers against one rollout at a time."""

from __future__ import annotations

import math
import re

import pytest
import torch

from rlrt.evaluation.asymmetry import (
    CLASSES,
    CONTEXTS,
    Gaps,
    View,
    carriers,
    class_of,
    contexts_of,
    correlations,
    gaps,
)
from rlrt.model.forward import Row, response_logp
from tests.forked import forked
from tests.training.test_update import world

NAN = math.nan


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        ("12", "number"), (" 3.5", "number"), ("1,000", "number"), ("x2", "other"), (",", "connective"), (".", "connective"),
        ("=", "operator"), (" +", "operator"), ("\\frac", "operator"), ("\\text", "other"), ("frac", "other"),
        (" So", "connective"), ("Wait", "connective"), ("\n\n", "connective"), (";", "connective"), (" sort", "other"),
        (".\n", "connective"), (" the", "other"), ("", "other"), (" ", "other"), ("(", "other"),
    ],
)  # fmt: skip
def test_the_kind_of_a_token(piece, kind):
    assert class_of(piece, special=False) == kind
    assert class_of(piece, special=True) == "special"


def found() -> Gaps:
    """Two contexts, four tokens of a correct rollout and two of a wrong one: a number, two operators, a special token."""
    number, operator, special = (CLASSES.index(name) for name in ("number", "operator", "special"))
    gap_KN = torch.tensor([[0.5, -0.1, 0.3, 0.1, 1.0, 2.0], [1.0, NAN, 0.0, 0.4, NAN, NAN]])
    class_N = torch.tensor([number, operator, operator, special, number, number])
    return Gaps(["sibling", "reference"], gap_KN, class_N, torch.tensor([True] * 4 + [False] * 2))


def test_which_tokens_carry_d_by_hand():
    rows = {tuple(row[:3]): row[3:] for row in carriers(found())}
    # sum of |D| of the correct tokens: .5 + .1 + .3 + .1 = 1
    assert rows["correct", "sibling", "all"] == pytest.approx([4, 1.0, 1.0, 0.2, 0.25])
    assert rows["correct", "sibling", "number"] == pytest.approx([1, 0.25, 0.5, 0.5, 0.5])
    assert rows["correct", "sibling", "operator"] == pytest.approx([2, 0.5, 0.4, 0.1, 0.2])
    assert rows["correct", "sibling", "special"] == pytest.approx([1, 0.25, 0.1, 0.1, 0.1])
    # the second token has no teacher: 1 + 0 + .4 = 1.4 over three tokens
    assert rows["correct", "reference", "all"] == pytest.approx([3, 1.0, 1.0, 1.4 / 3, 1.4 / 3])
    assert rows["correct", "reference", "number"] == pytest.approx([1, 1 / 3, 1 / 1.4, 1.0, 1.0])
    assert rows["wrong", "sibling", "number"] == pytest.approx([2, 1.0, 1.0, 1.5, 1.5])
    assert ("correct", "sibling", "connective") not in rows
    assert not any(key[:2] == ("wrong", "reference") for key in rows)


def test_a_sum_of_nothing_has_no_shares():
    silent = Gaps(["sibling"], torch.zeros(1, 2), torch.zeros(2, dtype=torch.long), torch.tensor([True, True]))
    assert carriers(silent)[0] == ["correct", "sibling", "all", 2, 1.0, "", 0.0, 0.0]
    assert correlations(silent) == []


def test_correlations_by_hand():
    (row,) = correlations(found())
    # over the tokens with both: (.5, 1), (.3, 0), (.1, .4); deviations (.2, 0, -.2) and (1.6, -1.4, -.2) / 3
    expected = (0.2 * 1.6 + 0.2 * 0.2) / math.sqrt(0.08 * (1.6**2 + 1.4**2 + 0.2**2))
    assert row[:4] == ["correct", "sibling", "reference", 3]
    assert row[4] == pytest.approx(expected)


def test_gaps_are_those_of_one_rollout_at_a_time_and_own_texts_are_not_shown():
    learner, rollouts, _ = world("method=rlrt")
    policy, builder = learner.policy, learner.builder
    names = [*CONTEXTS[:-1], "sibling:random"]
    contexts = contexts_of(names)
    found = gaps(policy, View(contexts, builder, 8192, learner.context_length), [*names], rollouts, 4096)
    assert found.contexts == names
    lengths = [len(r.generation.token_ids) for r in rollouts]
    assert found.gap_KN.shape == (len(names), sum(lengths))

    def logp_of(prompt_ids, ids):
        with torch.no_grad():
            return response_logp(policy.model, [Row(prompt_ids, ids)], 1.0).gather(-1, torch.tensor(ids)[:, None])[:, 0]

    hidden = 0
    for context, gap_N in zip(contexts, found.gap_KN, strict=True):
        texts = context.shown(rollouts)
        for rollout, text, gap_T in zip(rollouts, texts, gap_N.split(lengths), strict=True):
            assert text is None or text != rollout.text
            assert bool(gap_T.isnan().all()) == (text is None)
            hidden += text is None
            if text is not None and rollout.sample == 0:
                ids = rollout.generation.token_ids
                teacher = builder.teacher(rollout.prompt, text, context.question(rollout.prompt))
                assert torch.allclose(gap_T, logp_of(rollout.prompt_ids, ids) - logp_of(teacher, ids), atol=1e-4)
    assert hidden > 0


@pytest.mark.parametrize(
    ("typed", "says"),
    [("refrence", "expected one of sibling, .* got 'refrence'"), ("answer@0.5", "answer is shown whole"), (" , ", "got none")],
)  # fmt: skip
def test_contexts_that_there_are_not_are_one_sentence(tmp_path, typed, says):
    done = forked("analyze", [".", "--contexts", typed], tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(rf"--contexts: .*{says}", done.stderr)
