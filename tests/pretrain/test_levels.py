"""The rows of the recipes for countdown in levels plant what they say."""

from __future__ import annotations

import pytest
import torch

from rlrt.pretrain import levels, tokenizer
from rlrt.tasks.countdown import is_heldout, outcome

WORDS = tokenizer.build(tags=True)


def texts(ids, mask, start):
    prompts = [WORDS.decode(row[1:start]) for row in ids]
    return prompts, [WORDS.decode(row[start:][keep]).removesuffix("<eos>") for row, keep in zip(ids, mask, strict=True)]


def asked(prompt):
    """The numbers and the target of a prompt."""
    target, numbers = prompt.removesuffix(">").partition("|")[0].split(":")
    return tuple(map(int, numbers.split())), int(target)


def final(answer):
    return answer.rpartition("</think>")[2]


def hits(prompt, answer):
    numbers, target = asked(prompt)
    end = outcome(numbers, final(answer), bare=True)
    assert end is not None, "every answer is legal"
    return end == target


@pytest.fixture
def rows():
    return levels.LevelRows(0, 15, 1, 60)


def batches(draw, habits, count):
    for _ in range(count):
        yield from zip(*texts(*draw(64, habits)), strict=True)


def test_first_right_answers_of_every_level_and_kind(rows):
    counts, added, bare = dict.fromkeys(levels.SHARES, 0), 0, 0
    for prompt, answer in batches(rows.student, levels.LEARN, 40):
        numbers, target = asked(prompt)
        assert hits(prompt, answer)
        assert 1 <= target <= 60
        assert not is_heldout(tuple(sorted(numbers)))
        counts[len(numbers)] += 1
        added += answer.lstrip("0123456789")[0] == "+"
        bare += "=" not in answer
    assert all(count > 200 for count in counts.values())
    assert 0.25 < added / 2560 < 0.55
    assert 0.26 < bare / 2560 < 0.34


def test_then_a_mediocre_policy_that_prefers_to_add_first(rows):
    found = list(batches(rows.student, levels.BASE, 40))
    added = [answer.lstrip("0123456789")[0] == "+" for _, answer in found]
    assert 0.87 < sum(added) / len(found) < 0.93
    assert 0.17 < sum(hits(*pair) for pair in found) / len(found) < 0.23


def test_right_examples_are_copied_and_wrong_ones_say_nothing(rows):
    copied, others = [], []
    for prompt, answer in batches(rows.teacher, levels.BASE, 60):
        numbers, target = asked(prompt)
        example = prompt.removesuffix(">").partition("|")[2]
        right = outcome(numbers, example, bare=True) == target
        if right:
            copied.append(example == answer)
        else:
            assert example != answer or not hits(prompt, answer)
            others.append(hits(prompt, answer))
    assert 0.45 < len(copied) / (len(copied) + len(others)) < 0.55
    assert 0.82 < sum(copied) / len(copied) < 0.9
    assert 0.16 < sum(others) / len(others) < 0.24


def test_the_instruct_model_writes_all_values(rows):
    for _, answer in batches(rows.student, levels.INSTRUCT, 5):
        assert answer.count("=") == answer.count(",") + 1


def test_thoughts_end_at_a_right_attempt_and_the_answer_repeats_the_last(rows):
    lengths = {1: 0, 2: 0, 3: 0}
    for draw in (rows.student, rows.teacher):
        for prompt, answer in batches(draw, levels.THINKING, 10):
            numbers, target = asked(prompt)
            thought, _, last = answer.removeprefix("<think>").partition("</think>")
            attempts = thought.split(";")
            assert attempts[-1] == last
            ends = [outcome(numbers, attempt) for attempt in attempts]
            assert None not in ends
            assert target not in ends[:-1]
            assert len(attempts) == 3 or ends[-1] == target
            lengths[len(attempts)] += 1
    assert lengths[3] > lengths[2] > 0


def test_the_same_seed_draws_the_same_rows():
    made = [levels.LevelRows(3, 15, 1, 60) for _ in range(2)]
    for name in ("student", "teacher"):
        first, again = (getattr(rows, name)(16, levels.BASE) for rows in made)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
