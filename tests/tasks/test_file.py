from __future__ import annotations

import json

import pytest

from rlrt.build import check_data
from rlrt.errors import UserError
from rlrt.tasks.file import final_answer
from tests.helpers import settings


def task(path, *more):
    return settings("data=file", f"data.path={path}", *more).data


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


GOOD = [{"prompt": f"{n}+1?", "answer": n + 1, "solution": f"{n}+1={n + 1}"} for n in range(10)]


def test_reads_splits_and_grades(tmp_path):
    data = task(write(tmp_path / "a.jsonl", *GOOD, "", GOOD[0]))
    data.prepare()
    assert len(data.train) == 9  # 10 different questions, one held out
    assert len(data.heldout) == 1
    prompt = data.train[0]
    assert data.grade(prompt, f"so \\boxed{{ {prompt.answer} }}").correct
    assert data.grade(prompt, f"first line\n{prompt.answer}").correct
    assert not data.grade(prompt, f"{prompt.answer} or so").correct
    assert not data.grade(prompt, "").correct
    assert prompt.solution


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "line 2 .* is not valid JSON"),
        ("[1]", "line 2 .* expected a JSON object, got list"),
        ('{"prompt": "x"}', "line 2 .* expected text in field 'answer' .*found fields prompt"),
        ('{"prompt": "x", "answer": "  "}', "line 2 .* got '  '"),
        ('{"prompt": 1.5, "answer": true}', "line 2 .* got True"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, says):
    with pytest.raises(UserError, match=says):
        task(write(tmp_path / "a.jsonl", GOOD[0], line)).prepare()


def test_a_method_that_shows_references_needs_them(tmp_path, caplog):
    bare = [{"prompt": g["prompt"], "answer": g["answer"]} for g in GOOD]
    path = write(tmp_path / "a.jsonl", *bare)

    def check(*overrides):
        made = settings("data=file", f"data.path={path}", "train.prompts_per_step=2", *overrides)
        made.data.prepare()
        check_data(made)

    check("method=rlsd")  # shown the answer, which every line has
    check("method=grpo", "teacher.context=reference")  # no teacher at all
    for overrides in (["teacher.context=reference"], ["teacher.on_unique_correct=reference"]):
        with pytest.raises(UserError, match=r"teacher\.context: method rlrt .* reference texts, and the data has none"):
            check("method=rlrt", *overrides)
    write(path, *bare[:5], *GOOD[5:])
    check("method=rlrt", "teacher.context=reference")
    assert "training prompts have no reference text" in caplog.text


def test_missing_file_and_too_few(tmp_path):
    with pytest.raises(UserError, match="could not be read"):
        task(tmp_path / "none.jsonl").prepare()
    with pytest.raises(UserError, match="at least 2 questions"):
        task(write(tmp_path / "a.jsonl", GOOD[0])).prepare()


def test_path_must_be_given():
    with pytest.raises(UserError, match=r"data\.path: this key has no value"):
        settings("data=file")


@pytest.mark.parametrize(
    ("text", "answer"),
    [("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{1", ""), ("a\n b \n", "b"), ("", "")],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer
