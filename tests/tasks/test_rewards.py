"""Rewards by plain functions."""

from __future__ import annotations

import json
import sys

import pytest

from rlrt.errors import UserError
from rlrt.records.user_code import import_paths, refuse_foreign
from tests.forked import forked
from tests.helpers import settings

HERE = "tests.tasks.test_rewards"


def short(prompt, response, row):
    return -len(response) / 100


def level(prompt, response, row):
    assert prompt == row["prompt"]
    return row["level"]


def broken(prompt, response, row):
    raise KeyError("level")


def nothing(prompt, response, row):
    return None


def leaves(prompt, response, row):
    sys.exit("no more")


def half(prompt, response, row):
    raise ValueError("half a \ud800")


def takes(prompt, response, row):
    return float(row.pop("level"))


def yields(prompt, response, row):
    yield 1.0


async def waits(prompt, response, row):
    return 1.0


def of_two(prompt, response):
    return 1.0


def named_alone(*, prompt, response, row):
    return 1.0


@pytest.fixture
def table(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": str(i), "level": i} for i in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"data.path={tmp_path / 'a.jsonl'}"


def data_of(table, *overrides):
    made = settings("data=file", table, *overrides).data
    made.prepare()
    return made


def test_the_reward_is_the_weighted_sum_by_hand(table):
    """Level 3, 10 characters, right: 2 * 1 + 0.5 * 3 + 1 * -0.1 = 3.4; wrong: 1.4."""
    rewards = f"{{short:{HERE}.short,level:{{function:{HERE}.level,weight:0.5}}}}"
    data = data_of(table, f"data.rewards={rewards}", "data.verifier_weight=2")
    prompt = next(p for p in [*data.train, *data.heldout] if p.text == "3?")
    for text, correct, reward in (("\\boxed{3}.", True, 3.4), ("\\boxed{4}.", False, 1.4)):
        grade = data.grade(prompt, text)
        (same,) = data.start_grading([(prompt, text)])()
        assert same == grade
        assert (grade.correct, grade.error, grade.parts) == (correct, False, {"short": -0.1, "level": 3})
        assert grade.reward == pytest.approx(reward)
    cut = data.grade_truncated(prompt, "3" * 50)
    assert (cut.correct, cut.reward) == (False, 1.0)  # 1.5 - 0.5


def test_without_rewards_nothing_changes_and_no_row_is_kept(table):
    data = data_of(table)
    prompt = data.train[0]
    assert prompt.row is None
    grade = data.grade(prompt, f"\\boxed{{{prompt.final}}}")
    assert (grade.correct, grade.reward, dict(grade.parts)) == (True, 1.0, {})
    assert data.grade_truncated(prompt, "x").reward == 0.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{mean: a.b}", r"data\.rewards\.mean: expected a name"),
        ("{a-b: a.b}", r"data\.rewards\.a-b: expected a name"),
        (
            "{x: nowhere.at_all}",
            r"data\.rewards\.x: expected the import path of a function \(question, response, row\)",
        ),
        ("{x: {f: 1}}", r"data\.rewards\.x: expected an import path, or \{function"),
        (
            f"{{x: {{function: {HERE}.short, weight: much}}}}",
            r"data\.rewards\.x\.weight: expected a finite number, got 'much'",
        ),
        (
            f"{{x: {{function: {HERE}.short, weight: true}}}}",
            r"data\.rewards\.x\.weight: expected a finite number, got True",
        ),
        (f"{{x: {HERE}.HERE}}", r"data\.rewards\.x: .*HERE is no function"),
        (f"[{HERE}.short]", r"data\.rewards: expected a mapping \{NAME: VALUE\} or null"),
        ("{x: null}", r"data\.rewards\.x: expected an import path"),
        (f"{{x: {HERE}.of_two}}", r"data\.rewards\.x: .*of_two cannot be called so \(too many positional"),
        (f"{{x: {HERE}.named_alone}}", r"data\.rewards\.x: .*named_alone cannot be called so"),
        ("{x: os.getcwd}", r"data\.rewards\.x: .*os\.getcwd cannot be called so"),
        (f"{{x: {HERE}.yields}}", r"data\.rewards\.x: .*yields must return its value"),
        (f"{{x: {HERE}.waits}}", r"data\.rewards\.x: .*waits must return its value"),
    ],
)
def test_what_is_no_reward_is_refused(table, value, message):
    with pytest.raises(UserError, match=message):
        settings("data=file", table, f"data.rewards={value}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "KeyError: 'level'"),
        ("nothing", "expected a finite number, got None"),
        ("leaves", "SystemExit: no more"),
        ("half", r"ValueError: half a \\ud800"),
    ],
)
def test_a_function_that_fails_is_named(table, name, said):
    data = data_of(table, f"data.rewards={{x: {HERE}.{name}}}")
    with pytest.raises(RuntimeError, match=rf"data\.rewards\.x: {said}"):
        data.grade(data.train[0], "\\boxed{1}")


def test_a_function_changes_the_row_of_no_other_answer(table):
    data = data_of(table, f"data.rewards={{x: {HERE}.takes, y: {HERE}.level}}")
    prompt = data.train[0]
    given = [data.grade(prompt, text).parts for text in ("1", "2", "3")]
    assert given == [{"x": prompt.row["level"], "y": prompt.row["level"]}] * 3


@pytest.mark.parametrize("key", ["data.verifier={}.judge", "data.rewards={{x:{}.reward}}", "data._target_={}.Task"])
def test_a_module_that_ends_the_process_is_refused(tmp_path, monkeypatch, table, key):
    (tmp_path / "ends_it.py").write_text(
        "import argparse\n\nargparse.ArgumentParser(exit_on_error=True).parse_args(['-x'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"got 'ends_it\.\w+' \(2\)"):
        settings("data=file", table, key.format("ends_it"))


def test_the_code_of_a_reward_belongs_to_the_run_and_is_not_started_unasked():
    plain = {"data": {"rewards": {"a": "mine.a", "b": {"function": "mine.b", "weight": 1.0}}}}
    assert import_paths(plain) == {"data.rewards.a": "mine.a", "data.rewards.b.function": "mine.b"}
    with pytest.raises(UserError, match=r"data\.rewards\.a=mine\.a"):
        refuse_foreign(plain, "run")
    with pytest.raises(UserError, match=r"rlrt\.tasks\.x"):
        refuse_foreign({"data": {"rewards": {"a": "rlrt.tasks.x"}}}, "run")


def test_a_run_logs_each_reward_apart_and_counts_what_fails(tmp_path, table):
    (tmp_path / "my_rewards.py").write_text(
        "def short(prompt, response, row):\n    return -len(response) / 100\n\n\n"
        "def odd(prompt, response, row):\n    return float('nan') if row['level'] % 2 else 1\n"
    )
    words = (
        "train.steps=2",
        "train.prompts_per_step=4",
        "train.rollouts_per_prompt=2",
        "eval.prompts=1",
        "tracking=none",
    )
    rewards = "data.rewards={short:my_rewards.short,odd:{function:my_rewards.odd,weight:0.5}}"
    done = forked("run", ("data=file", table, rewards, *words, "data.instruction=''", "hydra.run.dir=out"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data.rewards.odd: expected a finite number, got nan" in done.stderr
    assert "the verifier failed on more than 5 % of the rollouts" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()][1:]
    for row in rows:
        assert row["reward/odd"] == 1.0
        assert row["reward/mean"] == pytest.approx(row["reward/correct_share"] + row["reward/short"] + 0.5)
        assert 0 < row["reward/verifier_error_share"] < 1
