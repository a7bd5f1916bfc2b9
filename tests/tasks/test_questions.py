"""When two questions are one: inside a table, between training and evaluation, and with an evaluation suite."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlrt.errors import UserError
from rlrt.execution.data import prepare_data
from rlrt.tasks.questions import near, plain
from tests.helpers import settings
from tests.hub import jsonl


def read(path, *more):
    data = settings("data=file", f"data.path={path}", *more).data
    data.prepare()
    return data


def rows(*questions):
    return [{"prompt": q, "answer": str(n)} for n, q in enumerate(questions)]


@pytest.mark.parametrize(
    "other",
    [
        "how many apples does tom have in 12 boxes?",
        "How many apples does Tom have in 12 boxes",
        "How many apples does Tom have in 12 boxes?!",
        "  How many  apples\ndoes Tom\u00a0have in 12 boxes ?",
        "How many apples does Tom have in 12 boxes...",
        "HOW MANY APPLES DOES TOM HAVE IN 12 BOXES!!",
    ],
)
def test_nearly_the_same(other):
    assert near(other) == near("How many apples does Tom have in 12 boxes?")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Sum of 1 23", "Sum of 12 3"),
        ("Sum of 1 23", "Sum of 123"),
        ("Half of 1.5", "Half of 15"),
        ("Half of 1,5", "Half of 15"),
        ("What is 5!", "What is 5?"),
        ("What is (n+1)!", "What is (n+1)"),
        ("What is n!", "What is n"),
        ("What is -5?", "What is 5?"),
        ("x² = 4", "x2 = 4"),
        ("What is 5%?", "What is 5?"),
        ("Is 3, 5 a pair?", "Is 3 5 a pair?"),
        ("a-b", "ab"),
    ],
)
def test_not_nearly_the_same(one, other):
    assert near(one) != near(other)
    assert plain(one) != plain(other)


@given(st.text(max_size=30))
def test_near_is_a_function_of_itself(text):
    assert near(near(text)) == near(text)
    assert plain(plain(text)) == plain(text)


def test_a_space_between_digits_makes_another_question(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", rows("Sum of 1 23", "Sum of 12 3", "Sum of 1 2 3", "Sum of  1 23"))
    data = read(file)
    assert len(data.train) + len(data.heldout) == 3
    assert dict(data.dropped) == {"repeated question": 1}


def test_a_question_with_two_answers_is_said(tmp_path):
    table = [
        {"prompt": q, "answer": a}
        for q, a in [("x?", "1"), ("x?", "1"), ("y?", "2"), ("y?", "7"), ("z?", "3"), (" y?", "8")]
    ]
    data = read(jsonl(tmp_path / "a.jsonl", table))
    assert dict(data.dropped) == {"repeated question": 3}
    assert data.report() == (
        "3 x repeated question (2 of them with another answer; the first is kept, for example '8' was dropped and '2' kept for "
        "'y?')"
    )
    assert {p.text: p.answer for p in [*data.train, *data.heldout]} == {"x?": "1", "y?": "2", "z?": "3"}


CHANGED = ["what is 1 + 1", "What  is 1 + 1 ?", "WHAT IS 1 + 1?"]


@pytest.mark.parametrize("changed", CHANGED)
def test_between_a_table_and_its_evaluation_table(tmp_path, changed):
    train = jsonl(tmp_path / "train.jsonl", rows("What is 1 + 1?", "What is 2 + 2?"))
    test = jsonl(tmp_path / "test.jsonl", rows(changed, "What is 3 + 3?"))
    data = read(train, f"data.heldout_path={test}")
    assert [p.text for p in data.heldout] == ["What is 3 + 3?"]
    assert len(data.train) == 2
    (reason,) = data.dropped
    if plain(changed) == "What is 1 + 1?":
        assert reason == "repeated question"
    else:
        assert reason == "evaluation question that is nearly one that is trained on"
        assert "(for example " in data.report()
        assert "'What is 1 + 1?')" in data.report()
    kept = read(train, f"data.heldout_path={test}", "data.duplicates=equal")
    assert len(kept.heldout) == 2


@pytest.mark.parametrize("changed", CHANGED)
def test_between_the_parts_of_one_table(tmp_path, changed):
    """Whichever share is held out: no training question is nearly one of it."""
    for share in (0.2, 0.5, 0.8):
        file = jsonl(tmp_path / "a.jsonl", rows("What is 1 + 1?", changed, *(f"What is {n} + 2?" for n in range(8))))
        data = read(file, f"data.heldout_share={share}")
        held = {near(p.text) for p in data.heldout}
        assert not any(near(p.text) in held for p in data.train)
        assert len(data.train) + len(data.heldout) + sum(data.dropped.values()) == 10


def test_nothing_to_train_on_is_said(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", rows("x?", "X?"))
    with pytest.raises(
        UserError, match=r"^data\.path: every question of .* \(1 x training question that is nearly one"
    ):
        read(file)
    data = read(file, "data.duplicates=equal")
    assert len(data.train) == len(data.heldout) == 1
    file = jsonl(tmp_path / "b.jsonl", rows("a?", "B?"))
    with pytest.raises(
        UserError, match=r"has no question that is not trained on \(2 x evaluation question that is near"
    ):
        read(file, f"data.heldout_path={jsonl(tmp_path / 'c.jsonl', rows('A', 'b'))}")


@pytest.mark.parametrize(
    ("tested", "says"), [("what IS 1 + 1", "1 of them nearly the same, for example "), ("What is 1 + 1?", "0 of them")]
)
def test_between_training_and_a_suite(tmp_path, caplog, tested, says):
    suite = jsonl(tmp_path / "test.jsonl", [{"problem": tested, "answer": "2"}, {"problem": "new", "answer": "2"}])
    table = jsonl(tmp_path / "a.jsonl", rows(*(f"What is {n} + 1?" for n in range(9))))
    made = settings(
        "data=file", f"data.path={table}", "eval=aime24", f"eval.suites.aime24.path={suite}", "eval.suites.aime24.problems=2"
    )  # fmt: skip
    whole = SimpleNamespace(task=made.data, suites=made.eval.suites)
    prepare_data(whole)
    assert "What is 1 + 1?" not in [p.text for p in whole.task.train]
    if "What is 1 + 1?" not in [p.text for p in whole.task.heldout]:
        assert f"dropped 1 problems that the evaluation suites hold ({says}" in caplog.text


# Two columns as one question


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"Body": "There are 3 cats. ", "Question": " How many legs?"}, "There are 3 cats. How many legs?"),
        ({"Body": "", "Question": "How many?"}, "How many?"),
        ({"Body": 5, "Question": "more than 3?"}, "5 more than 3?"),
        ({"Body": [{"role": "user", "content": "Add"}], "Question": ["one"]}, "Add one"),
    ],
)
def test_two_columns_are_one_question(tmp_path, row, question):
    table = [row | {"answer": "1"}, *({"Body": f"{n}", "Question": "x", "answer": "1"} for n in range(2))]
    data = read(jsonl(tmp_path / "a.jsonl", table), "data.prompt_field=[Body,Question]")
    assert question in [p.text for p in [*data.train, *data.heldout]]


def test_a_question_without_one_of_its_parts_is_none(tmp_path):
    table = [{"a": f"{n}", "b": {"c": "x"}, "answer": "1"} for n in range(3)]
    table += [{"a": "4", "answer": "1"}, {"a": None, "b": {"c": "x"}, "answer": "1"}, {"b": {"c": "x"}, "answer": "1"}]
    data = read(jsonl(tmp_path / "a.jsonl", table), "data.prompt_field=[a,b.c]")
    assert dict(data.dropped) == {"no question": 3}
    assert {p.text for p in [*data.train, *data.heldout]} == {"0 x", "1 x", "2 x"}


def test_suites_take_two_columns_too(tmp_path):
    file = jsonl(tmp_path / "test.jsonl", [{"a": f"{n}", "b": "x", "answer": "1"} for n in range(3)])
    keys = (f"path={file}", "problems=3", "prompt_field=[a,b]")
    suite = settings("eval=aime24", *(f"eval.suites.aime24.{k}" for k in keys)).eval.suites["aime24"]
    suite.prepare()
    assert [p.text for p in suite.heldout] == ["0 x", "1 x", "2 x"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[]", r"data\.prompt_field: expected a column or a list of columns, got an empty list"),
        ("3", r"expected a column '3' in line 1"),
        ("{a: b}", r"data\.prompt_field: expected text or a list of texts, got "),
        ("[1,a]", r"expected a column '1' in line 1"),
        ("null", r"data\.prompt_field: expected text or a list of texts, got None"),
    ],
)
def test_what_is_no_column_is_refused(tmp_path, value, says):
    file = jsonl(tmp_path / "a.jsonl", rows("x", "y", "z"))
    with pytest.raises(UserError, match=says) as caught:
        read(file, f"data.prompt_field={value}")
    assert "\n" not in str(caught.value)


def test_published_questions_stay_apart(tmp_path):
    """The questions that one column alone makes equal: SVAMP's Question without its Body."""
    table = [{"Body": f"There are {n} jars.", "Question": "How many are there?", "Answer": float(n)} for n in range(5)]
    file = tmp_path / "svamp.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    with pytest.raises(UserError, match=r"4 x repeated question \(4 of them with another answer"):
        read(file, "data.prompt_field=Question", "data.answer_field=Answer")
    both = read(file, "data.prompt_field=[Body,Question]", "data.answer_field=Answer")
    assert sorted(p.answer for p in [*both.train, *both.heldout]) == ["0", "1", "2", "3", "4"]
