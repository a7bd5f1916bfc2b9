"""The shipped model is what its recipe recorded, and the recipe plants what it says."""

from __future__ import annotations

import json

import pytest
import torch

from rlrt.execution.build import build_learner
from rlrt.paths import EMBEDDED
from rlrt.pretrain import recipe, tokenizer
from rlrt.pretrain.measure import start_numbers
from rlrt.pretrain.rows import Mixture, Rows
from rlrt.tasks.countdown import outcome
from tests.helpers import settings

RECORDED = json.loads((EMBEDDED / "start.json").read_text())


def test_size():
    assert sum(f.stat().st_size for f in EMBEDDED.iterdir()) < 2_000_000
    assert {f.suffix for f in EMBEDDED.iterdir()} == {".json", ".safetensors"}


def test_the_shipped_model_reaches_what_was_recorded():
    made = settings()
    made.data.prepare()
    learner = build_learner(made)
    model = learner.policy.model
    assert sum(p.numel() for p in model.parameters()) == RECORDED["parameters"] < 1_000_000
    numbers = start_numbers(
        model, learner.policy.tokenizer, made.engine, made.data, made.model.prompt_template, made.teacher.template
    )
    for name, value in numbers.items():
        assert value == pytest.approx(RECORDED[name], abs=0.01), name


def test_the_start_leaves_room_and_has_a_teacher():
    assert 0.25 <= RECORDED["eval/avg_at_8"] <= 0.50
    assert RECORDED["eval/pass_at_8"] > 0.85
    assert RECORDED["teacher/gain"] >= 1.5
    assert RECORDED["gap/abs_mean"] > 0.1


@pytest.fixture(scope="module")
def rows():
    task = settings().data
    task.prepare()
    return Rows([p.answer for p in task.train[:400]], task.highest, tokenizer.TOKEN_ID, seed=0), task


MIX = Mixture(p_good=0.5, p_again=0.5, p_copy=0.7, max_attempts=3)


def texts(ids, mask, start):
    words = tokenizer.build()
    prompts = [words.decode(row[1:start]) for row in ids.tolist()]
    answers = [
        words.decode([t for t, m in zip(row[start:], keep, strict=True) if m])
        for row, keep in zip(ids.tolist(), mask.tolist(), strict=True)
    ]
    return prompts, answers


def test_answers_are_legal_attempts_that_stop_at_a_hit(rows):
    made, _ = rows
    prompts, answers = texts(*made.student(200, MIX))
    hits = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        target, numbers = prompt.removesuffix(">").split(":")
        assert answer.endswith("<eos>")
        ends = [outcome(tuple(sorted(map(int, numbers.split()))), a) for a in answer.removesuffix("<eos>").split(";")]
        assert None not in ends
        assert len(ends) <= 3
        assert int(target) not in ends[:-1]
        hits += ends[-1] == int(target)
    assert 80 < hits < 190


def test_the_teachers_format_says_nothing_by_itself(rows):
    """Examples are as often wrong as right; after a wrong one the answer is a student's."""
    made, _ = rows
    right = copied = after_wrong = wrong = 0
    for _ in range(20):
        prompts, answers = texts(*made.teacher(100, MIX))
        for prompt, answer in zip(prompts, answers, strict=True):
            question, example = prompt.removesuffix(">").split("|")
            target, numbers = question.split(":")
            own = tuple(sorted(map(int, numbers.split())))
            good = outcome(own, example.split(";")[-1]) == int(target)
            hit = outcome(own, answer.removesuffix("<eos>").split(";")[-1]) == int(target)
            right += good
            copied += good and answer.removesuffix("<eos>") == example.split(";")[-1]
            wrong += not good
            after_wrong += (not good) and hit
    assert 0.45 < right / 2000 < 0.65  # .5, and random legal paths hit now and then
    assert 0.65 < copied / right < 0.85
    students = sum(
        outcome(
            tuple(sorted(map(int, p.removesuffix(">").split(":")[1].split()))), a.removesuffix("<eos>").split(";")[-1]
        )
        == int(p.split(":")[0])
        for _ in range(20)
        for p, a in zip(*texts(*made.student(100, MIX)), strict=True)
    )
    assert after_wrong / wrong == pytest.approx(students / 2000, abs=0.06)


def test_the_recipe_is_deterministic():
    task = settings().data
    task.prepare()
    short = recipe.Recipe(
        batch=8,
        phases=(
            recipe.Phase(3, 0.5, Mixture(1.0, 0.0, 0.8, 1), decays=False),
            recipe.Phase(3, 0.5, MIX, decays=True),
        ),
    )
    problems = [p.answer for p in task.train[:50]]
    runs = [
        recipe.train(short, Rows(problems, task.highest, tokenizer.TOKEN_ID, short.seed), lambda line: None)
        for _ in range(2)
    ]
    for a, b in zip(*(m.parameters() for m in runs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ids", [[4, 5, 6, 103, 99], [10, 105, 10, 106, 102, 108, 3], [111, 109, 110, 3, 3]])
def test_any_tokens_survive_decoding_and_encoding(ids):
    words = tokenizer.build()
    assert words(words.decode(ids), add_special_tokens=False)["input_ids"] == ids


def test_random_tokens_survive_too():
    words, g = tokenizer.build(), torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(3, 112, (12,), generator=g).tolist()
        assert words(words.decode(ids), add_special_tokens=False)["input_ids"] == ids
