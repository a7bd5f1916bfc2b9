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
