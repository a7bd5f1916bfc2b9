"""Which rollouts get a teacher's row: room in the model's context, a shorter sibling, and own texts."""

from __future__ import annotations

import copy
import dataclasses

import torch

from rlrt.methods.contexts import Sibling
from rlrt.training.batch import batch_of, signals_of, teacher_rows
from rlrt.types import Grade
from tests.training.test_update import world


def test_the_room_for_a_teacher_is_what_this_response_leaves():
    """A context of 64 tokens and responses of up to 48: 16 tokens are left in the worst case, and more in all others."""
    learner, rollouts, _ = world("method=rlrt", "model.context_length=64")
    lengths = [len(r.generation.token_ids) for r in rollouts]
    wanted_B = torch.ones(len(rollouts), dtype=torch.bool)
    batch, _, shares = batch_of(learner, rollouts, signals_of(rollouts, 1, []), wanted_B)
    rows = [row for row in batch.teacher_rows[0] if row is not None]
    assert learner.context_length == 64
    assert all(len(row.prompt_ids) + len(row.response_ids) <= 64 for row in rows)
    assert any(len(row.prompt_ids) > 16 for row in rows)
    everyone = [text for text in Sibling().texts(rollouts) if text is not None]
    assert len(rows) + round(shares["teacher/too_long_share"] * len(rollouts)) == len(everyone)
    assert len(rows) > len(everyone) / 2
    # one rollout, to the token
    i = next(k for k, row in enumerate(batch.teacher_rows[0]) if row is not None)
    learner.context_length = len(batch.teacher_rows[0][i].prompt_ids) + lengths[i]
    assert batch_of(learner, rollouts, batch.signals, wanted_B)[0].teacher_rows[0][i] is not None
    learner.context_length -= 1
    assert batch_of(learner, rollouts, batch.signals, wanted_B)[0].teacher_rows[0][i] is None


def beginnings(learner, rollouts, lengths, correct):
    """Rollouts of one group: beginnings of one response, of so many tokens."""
    whole, group = rollouts[0].generation, []
    for rollout, length, right in zip(rollouts, lengths, correct, strict=False):
        cut = {"token_ids": whole.token_ids[:length], "logp_T": whole.logp_T[:length]}
        generation = dataclasses.replace(whole, **cut, entropy_T=whole.entropy_T[:length])
        text = learner.policy.text(generation.token_ids)
        group.append(dataclasses.replace(rollout, generation=generation, text=text, grade=Grade(right, float(right))))
    return group


def test_a_shorter_sibling_stands_in_for_one_that_does_not_fit():
    learner, rollouts, _ = world("method=rlrt", "teacher.context=sibling:longest", "teacher.too_long=shorter_sibling")
    builder, prompt = learner.builder, rollouts[0].prompt
    group = beginnings(learner, rollouts, (2, 9, 6, 4), [True] * 4)
    prompts = [builder.teacher(prompt, rollout.text) for rollout in group]
    assert [len(ids) - len(prompts[0]) for ids in prompts] == [0, 7, 4, 2]
    wanted_B, signals = torch.tensor([True, False, False, False]), signals_of(group, 1, [])
    for sibling in (1, 2, 3):
        learner.max_context_tokens = len(prompts[sibling])
        batch, shown, shares = batch_of(learner, group, signals, wanted_B)
        assert shown == [group[sibling].text, None, None, None]
        assert batch.teacher_rows[0][0].prompt_ids == prompts[sibling]
        assert shares["teacher/too_long_share"] == 0.0
    learner.max_context_tokens -= 1  # not even the shortest fits
    assert batch_of(learner, group, signals, wanted_B)[2]["teacher/too_long_share"] == 1.0
    learner.max_context_tokens, learner.too_long = learner.max_context_tokens + 1, "no_teacher"
    assert batch_of(learner, group, signals, wanted_B)[2]["teacher/too_long_share"] == 1.0


def test_no_wrong_sibling_stands_in_for_another_and_is_counted_twice():
    """RLCSD's wrong siblings have 9, 6, 4 and 3 tokens, and those of 4 and 3 fit: their mean is over these two. Each of the
    longer ones would have the one of 4 tokens in its place, which then had three parts of four in the mean."""
    learner, rollouts, _ = world("method=rlcsd", "teacher.too_long=shorter_sibling")
    group = beginnings(learner, rollouts, (2, 9, 6, 4, 3), [True] + [False] * 4)
    learner.max_context_tokens = len(learner.builder.teacher(group[0].prompt, group[3].text))
    wanted_B = torch.tensor([True] + [False] * 4)
    rows, texts, too_long = teacher_rows(learner, group, wanted_B)
    shown = [text[0] for view, text in zip(rows, texts, strict=True) if view[0] is not None]
    assert shown == [group[3].text, group[4].text]
    assert too_long == 2


def test_an_empty_text_is_shown_with_the_students_own_question_in_every_view():
    """Wrong responses without a text, of four prompts: the view without the question is what the student saw too."""
    learner, rollouts, _ = world("method=rlrt", "method.gap=split", "teacher.context=wrong_sibling")
    for rollout in rollouts:
        rollout.grade = Grade(rollout.sample > 0, float(rollout.sample > 0))
        rollout.text = rollout.text if rollout.sample else ""
    rows, _, _ = teacher_rows(learner, rollouts, torch.ones(len(rollouts), dtype=torch.bool))
    assert len(rows) == 2
    for view in rows:
        seen = [(row.prompt_ids, r.prompt_ids) for row, r in zip(view, rollouts, strict=True) if row is not None]
        assert len(seen) == 20  # four prompts, five correct rollouts each
        assert all(mine == students for mine, students in seen)


def test_rollouts_with_the_text_of_all_their_siblings_are_counted_and_have_no_teacher():
    learner, rollouts, _ = world("method=rlrt")
    for rollout in rollouts:
        if rollout.group == 0:
            first = rollouts[0]
            rollout.generation, rollout.text = copy.deepcopy(first.generation), first.text
            rollout.grade = Grade(correct=rollout.sample < 3, reward=float(rollout.sample < 3))
    wanted_B = torch.tensor([r.group == 0 and r.grade.correct for r in rollouts])
    batch, _, shares = batch_of(learner, rollouts, signals_of(rollouts, 1, []), wanted_B)
    assert int(wanted_B.sum()) == 3
    assert not bool(batch.has_teacher().any())
    assert (shares["teacher/own_text_share"], shares["teacher/too_long_share"]) == (1.0, 0.0)
    assert shares["teacher/wanted_without_share"] == 3 / 24
