"""reasoning-gym: whitelisted tasks, score == 1, problems that no seed of a run changes. Needs make gym."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlrt.errors import UserError
from rlrt.tasks.reasoning import TASKS
from tests.helpers import settings

pytest.importorskip("reasoning_gym", reason="make gym installs it; CI does")


def task(name, *more):
    return settings("data=reasoning_gym", f"data.task={name}", "data.problems=6", "data.heldout_prompts=4", *more).data


@pytest.fixture(scope="module")
def chain():
    made = task("chain_sum")
    made.prepare()
    yield made
    made.close()


def test_gold_scores_and_less_than_all_is_wrong(chain):
    prompt = chain.train[0]
    gold = prompt.final
    texts = [
        f"so \\boxed{{{gold}}}",
        gold,
        f"\\boxed{{{int(gold) + 1}}}",
        "",
        f"\\boxed{{{gold}}} or \\boxed{{0.5}}",
        f"<think>{gold}",
    ]
    grades = chain.start_grading([(prompt, t) for t in texts])()
    assert [g.correct for g in grades] == [True, True, False, False, False, False]
    assert not any(g.error for g in grades)


def test_partial_points_are_no_points():
    """reasoning-gym pays 0.01 for any answer here; a share of the points is no correct answer."""
    import reasoning_gym

    data = reasoning_gym.create_dataset("fraction_simplification", size=3, seed=0)
    entry = data[0]
    assert 0 < data.score_answer("zzzz", entry) < 1
    made = task("fraction_simplification")
    made.prepare()
    try:
        prompt = made.train[0]
        grades = made.start_grading([(prompt, "\\boxed{zzzz}"), (prompt, f"\\boxed{{{prompt.final}}}")])()
    finally:
        made.close()
    assert [(g.correct, g.reward) for g in grades] == [(False, 0.0), (True, 1.0)]


def test_no_training_problem_is_held_out_and_the_order_is_fixed(chain):
    again = task("chain_sum")
    again.prepare()
    assert [p.text for p in again.train] == [p.text for p in chain.train]
    assert not {p.text for p in chain.train} & {p.text for p in chain.heldout}
    other = task("chain_sum", "data.data_seed=5")
    other.prepare()
    assert [p.text for p in other.train] != [p.text for p in chain.train]


@pytest.mark.parametrize("name", TASKS)
def test_every_whitelisted_task_takes_its_own_answer_from_a_box(name):
    from rlrt.tasks.reasoning import last_answer
    from rlrt.verifiers.gym import entry, scored

    for number in range(2):
        problem = (name, 50, 0, number)
        assert scored(problem, last_answer(f"Thus \\boxed{{{entry(problem)['answer']}}}"))


def test_problems_are_the_same_under_another_hash_seed():
    code = (
        "from rlrt.verifiers.gym import entry; from rlrt.tasks.reasoning import TASKS; import hashlib;"
        "names = [t for t in TASKS if t not in ('sokoban', 'futoshiki')];"
        "print(hashlib.sha256(repr([entry((t, 50, 0, 0))['question'] for t in names]).encode()).hexdigest())"
    )
    import os

    said = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("chainsum", (), r"data\.task: expected one of the 89 tasks .* Did you mean 'chain_sum'"),
        ("word_ladder", (), r"data\.task: expected one of the 89 tasks"),
        ("chain_sum", ("data.version=0.1.0",), r"data\.version: expected reasoning-gym 0\.1\.0, found 0\.1\.25"),
    ],
)
def test_bad_input_is_one_sentence(name, more, says):
    with pytest.raises(UserError, match=says):
        task(name, *more).prepare()


def test_arguments_set_the_difficulty_in_every_process():
    made = task("chain_sum", "data.task_args={min_terms: 2, max_terms: 2, max_digits: 1}")
    made.prepare()
    try:
        assert all(sum(c in "+-" for c in p.text) == 1 for p in [*made.train, *made.heldout])
        assert all(-9 <= int(p.final) <= 18 for p in made.train)
        prompt = made.train[0]
        grades = made.start_grading([(prompt, prompt.final), (prompt, "\\boxed{99}")])()
        assert [(g.correct, g.error) for g in grades] == [(True, False), (False, False)]
    finally:
        made.close()
    plain = task("chain_sum")
    plain.prepare()
    same = task("chain_sum", "data.task_args={}")
    same.prepare()
    assert [p.id for p in plain.train] == [p.id for p in same.train] != [p.id for p in made.train]


@pytest.mark.parametrize(
    "more", ["+data.task_args.max_terms=3", "data.task_args={max_terms:3}", "+data.task_args={max_terms:3}"]
)
def test_arguments_are_typed_in_any_form(more):
    assert task("chain_sum", more).task_args == {"max_terms": 3}


def test_lists_and_numbers_of_other_tasks():
    made = task("basic_arithmetic", "data.task_args={operators: ['+'], min_terms: 2, max_terms: 2}")
    made.prepare()
    assert not any(sign in p.text.split("=")[0].split(":")[-1] for p in made.train for sign in "*/")
    task("binary_matrix", "data.task_args={p_zero: 1, max_n: 4}").prepare()  # a whole number for a number


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("chain_sum", "{min_term: 2}", r"chain_sum has no argument 'min_term'\. Did you mean 'min_terms'"),
        ("chain_sum", "{seed: 2}", r"chain_sum has no argument 'seed'\."),
        ("chain_sum", "{size: 2}", r"chain_sum has no argument 'size'\."),
        ("gcd", "{zzz: 2}", r"gcd has no argument 'zzz'\. Valid: "),
        (
            "chain_sum",
            "{min_terms: 9}",
            r"makes no problem with .*\(max_terms must be >= min_terms\); its arguments are ",
        ),
        ("chain_sum", "{min_terms: 0}", r"makes no problem with"),
        ("chain_sum", "{min_terms: many}", r"expected a whole number for min_terms of chain_sum .*, got 'many'"),
        ("chain_sum", "{min_terms: 2.5}", r"expected a whole number for min_terms"),
        ("chain_sum", "{min_terms: true}", r"expected a whole number for min_terms"),
        ("chain_sum", "{allow_negation: 1}", r"expected true or false for allow_negation"),
        ("basic_arithmetic", "{operators: '+'}", r"expected a list for operators"),
        ("chain_sum", "3", r"data\.task_args: expected "),
        ("chain_sum", "[min_terms]", r"data\.task_args: expected "),
    ],
)
def test_arguments_that_a_task_does_not_take_are_one_sentence(name, arguments, says):
    with pytest.raises(UserError, match=says) as caught:
        task(name, f"data.task_args={arguments}").prepare()
    assert str(caught.value).startswith("data.task_args: ")
    assert "\n" not in str(caught.value)
