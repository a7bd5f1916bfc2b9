"""The rows of the testbed's recipes plant what they say."""

from __future__ import annotations

import re

import pytest
import torch

from rlrt.pretrain import recipe, tokenizer, walks
from rlrt.pretrain.recipe import Phase, Recipe
from rlrt.tasks.walk import adds_first, drawn, move_sets, outcome, walk_of

PROBLEMS = drawn(move_sets()[0], 400, 2, 4, 0)
BY_QUESTION = {(p.start, p.target, p.moves): (p, those) for p, those in PROBLEMS}


def texts(ids, mask, start):
    words = tokenizer.build(tags=True)
    prompts = [words.decode(row[1:start]) for row in ids]
    return prompts, [words.decode(row[start:][keep]).removesuffix("<eos>") for row, keep in zip(ids, mask, strict=True)]


def asked(prompt):
    """The problem that a prompt asks, and its walks."""
    head, moves = prompt.removesuffix(">").partition("|")[0].split(":")
    start, target = map(int, head.split(","))
    found = tuple(
        sorted(((o, int(n)) for o, n in re.findall(r"([+*-])(\d+)", moves)), key=lambda m: ("+-*".index(m[0]), m))
    )
    return BY_QUESTION[start, target, found]


def final(answer):
    return answer.rpartition("</think>")[2]


@pytest.fixture(scope="module")
def rows():
    return walks.WalkRows(0, PROBLEMS)


def test_first_every_kind_of_right_walk(rows):
    prompts, answers = texts(*rows.student(400, walks.LEARN))
    bare = added = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        problem, _ = asked(prompt)
        assert outcome(problem, answer, 4) == problem.target
        bare += "=" not in answer
        added += answer[0] == "+"
    assert 90 < bare < 150
    assert 180 < added < 280


def test_then_a_mediocre_policy_that_prefers_to_add_first(rows):
    """Nine in ten answers add first (fewer, since near 99 nothing can be added); one in five of a kind that can be right is."""
    found = {True: [], False: []}
    for prompt, answer in zip(*texts(*rows.student(2000, walks.BASE)), strict=True):
        problem, those = asked(prompt)
        end = outcome(problem, answer, 4)
        assert end is not None
        found[adds_first(those)].append((answer[0] == "+", end == problem.target))
    assert 0.82 < sum(added for rows in found.values() for added, _ in rows) / 2000 < 0.92
    assert sum(right for _, right in found[False]) / len(found[False]) == pytest.approx(0.1 * 0.2, abs=0.02)
    added = [right for is_added, right in found[True] if is_added]
    assert sum(added) / len(added) == pytest.approx(0.2, abs=0.04)


def test_the_instruct_models_answers_have_every_number(rows):
    _, answers = texts(*rows.student(100, walks.INSTRUCT))
    assert all(claimed is not None for answer in answers for _, claimed in walk_of(answer))


def test_a_thought_tries_until_it_hits_and_the_answer_repeats_it(rows):
    prompts, answers = texts(*rows.student(400, walks.THINKING))
    hits, tries = 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        problem, _ = asked(prompt)
        thought = re.fullmatch(r"<think>(.*)</think>(.*)", answer)
        tried = thought[1].split(";")
        ends = [outcome(problem, walk, 4) for walk in tried]
        assert None not in ends
        assert problem.target not in ends[:-1]
        assert thought[2] == tried[-1]
        hits += ends[-1] == problem.target
        tries.append(len(tried))
    assert max(tries) == 3
    assert 0.2 < hits / 400 < 1 - 0.86**3 + 0.06  # fewer where a problem cannot be solved by adding first


@pytest.mark.parametrize("habits", [walks.BASE, walks.THINKING], ids=["base", "thinking"])
def test_the_teachers_format_says_nothing_by_itself(rows, habits):
    """Examples are as often wrong as right, whatever their thought; after a wrong one the answer is a student's."""
    right = copied = wrong = copied_wrong = 0
    thoughts = set()
    for _ in range(20):
        prompts, answers = texts(*rows.teacher(100, habits))
        for prompt, answer in zip(prompts, answers, strict=True):
            problem, _ = asked(prompt)
            example = prompt.removesuffix(">").partition("|")[2]
            walk = final(example)
            good = outcome(problem, walk, 4) == problem.target
            right, wrong = right + good, wrong + (not good)
            copy = f"<think>{walk}</think>{walk}" if habits.attempts else example
            copied += good and answer == copy
            copied_wrong += (not good) and answer == copy
            thoughts.add(example.count(";") + ("<think>" in example))
    assert 0.4 < right / (right + wrong) < 0.6
    assert copied / right > 0.8
    assert copied_wrong < 0.1 * wrong
    assert thoughts == set(range(habits.attempts + 1))


def test_a_recipe_is_deterministic_and_goes_on_from_a_model():
    short = Recipe(batch=4, phases=(Phase(3, 0.5, walks.BASE, decays=False), Phase(2, 0.5, walks.BASE, decays=True)))
    made = [recipe.train(short, walks.WalkRows(0, PROBLEMS), lambda line: None) for _ in range(2)]
    for a, b in zip(*(m.parameters() for m in made), strict=True):
        assert torch.equal(a, b)
    before = [p.detach().clone() for p in made[0].parameters()]
    tuned = Recipe(batch=4, phases=(Phase(2, 0.5, walks.THINKING, decays=True),))
    after = recipe.train(tuned, walks.WalkRows(0, PROBLEMS), lambda line: None, made[0])
    assert after is made[0]
    assert not all(torch.equal(a, b) for a, b in zip(before, after.parameters(), strict=True))


def test_the_vocabulary_with_tags_goes_on_from_the_one_without():
    plain, tagged = tokenizer.build(), tokenizer.build(tags=True)
    assert tagged.get_vocab() == plain.get_vocab() | {"<think>": 112, "</think>": 113} == tokenizer.WITH_TAGS
    text = "3,62:+7*5-9+12|<think>+7=10;*5=15</think>+7=10>"
    ids = tagged(text, add_special_tokens=False)["input_ids"]
    assert tagged.decode(ids) == text
    assert tokenizer.WITH_TAGS["<pad>"] not in ids
