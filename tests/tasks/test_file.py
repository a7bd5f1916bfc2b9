from __future__ import annotations

import csv
import json
import multiprocessing

import pyarrow
import pyarrow.parquet
import pytest

from rlrt.errors import UserError
from rlrt.execution.data import check_data, drop_long_prompts
from rlrt.execution.execute import execute
from rlrt.execution.parts import parts_of
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


def test_ids_are_of_content_whatever_the_file(tmp_path):
    """Two folders with files of one name: no id comes twice. A file that is renamed or sorted keeps its ids."""
    for folder, first in (("a", 12), ("b", 40)):
        (tmp_path / folder).mkdir()
        write(
            tmp_path / folder / "test.jsonl",
            *[{"prompt": f"{n}:3 4 5", "answer": "x"} for n in range(first, first + 12)],
        )
    data = task(tmp_path, "data.heldout_share=0.5")
    data.prepare()
    both = {p.text: p.id for p in [*data.train, *data.heldout]}
    assert len(set(both.values())) == len(both) == 24
    lines = [{"prompt": text, "answer": "x"} for text in sorted(both, reverse=True)]
    other = task(
        write(tmp_path / "other.jsonl", *lines[:9]), f"data.heldout_path={write(tmp_path / 'held.jsonl', *lines)}"
    )
    other.prepare()
    assert {p.text: p.id for p in [*other.train, *other.heldout]} == both
    changed = task(write(tmp_path / "changed.jsonl", *[line | {"answer": "y"} for line in lines]))
    changed.prepare()
    assert not {p.id for p in [*changed.train, *changed.heldout]} & set(both.values())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "line 2 .* is not valid JSON"),
        ("[1]", "line 2 .* expected a JSON object, got list"),
        ('{"prompt": "x"', "line 2 .* is not valid JSON"),
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
        parts = parts_of(made)
        parts.task.prepare()
        check_data(made, parts)

    check("method=rlsd")  # shown the answer, which every line has
    check("method=grpo", "teacher.context=reference")  # no teacher at all
    for overrides in (["teacher.context=reference"], ["teacher.on_unique_correct=reference"]):
        with pytest.raises(UserError, match=r"teacher\.context: method rlrt .* reference texts, and the data has none"):
            check("method=rlrt", *overrides)
    write(path, *bare[:5], *GOOD[5:])
    check("method=rlrt", "teacher.context=reference")
    assert "training prompts have no reference text" in caplog.text


def test_a_hint_is_read_from_its_column_and_changes_no_id(tmp_path):
    path = write(tmp_path / "a.jsonl", *[g | {"tip": f"count from {n}"} if n else g for n, g in enumerate(GOOD)])
    plain, hinted = task(path), task(path, "data.hint_field=tip")
    for data in (plain, hinted):
        data.prepare()
    hints = {p.text: p.hint for p in [*hinted.train, *hinted.heldout]}
    assert hints == {g["prompt"]: f"count from {n}" if n else None for n, g in enumerate(GOOD)}
    assert [p.id for p in plain.train] == [p.id for p in hinted.train]
    made = settings("data=file", f"data.path={path}", "train.prompts_per_step=2", "method=rlrt", "teacher.context=hint")
    parts = parts_of(made)
    parts.task.prepare()
    with pytest.raises(UserError, match=r"teacher\.context: method rlrt shows .* hint texts, and the data has none"):
        check_data(made, parts)


def test_missing_file_and_too_few(tmp_path):
    with pytest.raises(UserError, match="could not be read"):
        task(tmp_path / "none.jsonl").prepare()
    with pytest.raises(UserError, match="at least 2 questions"):
        task(write(tmp_path / "a.jsonl", GOOD[0])).prepare()


def test_path_must_be_given():
    with pytest.raises(UserError, match=r"data\.path: this key has no value"):
        settings("data=file")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_format_holds_the_same_problems(tmp_path, kind):
    file = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(file, *GOOD)
    elif kind == "json":
        file.write_text(json.dumps(GOOD))
    elif kind == "csv":
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["prompt", "answer", "solution"])
            writer.writeheader()
            writer.writerows(GOOD)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), file)
    data = task(file)
    data.prepare()
    found = sorted((p.text, p.answer, p.solution) for p in [*data.train, *data.heldout])
    assert found == sorted((g["prompt"], str(g["answer"]), g["solution"]) for g in GOOD)


def test_repeated_questions_and_rows_without_an_answer_are_counted_and_reported(tmp_path, caplog):
    rows = [
        *GOOD,
        GOOD[0],
        {"prompt": " 0+1? ", "answer": "9"},
        {"prompt": "x", "answer": "  "},
        {"prompt": None, "answer": 1},
    ]
    data = task(write(tmp_path / "a.jsonl", *rows, {"prompt": "long " * 400, "answer": 2}))
    data.prepare()
    drop_long_prompts(data, Builder())
    assert dict(data.dropped) == {
        "repeated question": 2,
        "no answer": 1,
        "no question": 1,
        "prompt over 1024 tokens": 1,
    }
    assert len(data.train) + len(data.heldout) == 10
    assert (
        "data: dropped 1 x no answer, 1 x no question, 1 x prompt over 1024 tokens, 2 x repeated question"
        in caplog.text
    )


class Builder:
    """A prompt's tokens are its letters."""

    def student(self, prompt):
        return list(prompt.text)


def test_nothing_left_is_said(tmp_path):
    data = task(write(tmp_path / "a.jsonl", *GOOD), "data.max_prompt_tokens=2")
    data.prepare()
    with pytest.raises(UserError, match=r"data\.max_prompt_tokens: all \d training prompts are longer than 2 tokens"):
        drop_long_prompts(data, Builder())
    with pytest.raises(UserError, match=r"expected at least 2 questions .* found 0 \(2 x no answer\)"):
        task(write(tmp_path / "b.jsonl", {"prompt": "x", "answer": ""}, {"prompt": "y", "answer": None})).prepare()


def test_gsm8k_as_on_the_hub(tmp_path):
    """Its folder, its file names, its columns, its answers after ####."""
    folder = tmp_path / "gsm8k" / "main"
    folder.mkdir(parents=True)
    for split, count in (("train", 6), ("test", 3)):
        rows = [{"question": f"{split} {n}?", "answer": f"It is {n}.\n#### 1,{n:03d}"} for n in range(count)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    data = settings("data=gsm8k", f"data.path={tmp_path / 'gsm8k'}").data
    data.prepare()
    assert [p.answer for p in data.train] == [f"1{n:03d}" for n in range(6)]
    assert [p.text for p in data.heldout] == ["test 0?", "test 1?", "test 2?"]
    assert data.train[2].solution == "It is 2.\n#### 1,002"


def test_math_and_dapo_as_on_the_hub(tmp_path):
    folder = tmp_path / "MATH" / "data"
    folder.mkdir(parents=True)
    rows = [
        {"problem": f"{n}?", "level": "Level 1", "solution": f"So $\\boxed{{\\frac{{{n}}}{{7}}}}$."} for n in range(4)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    test = [
        {"problem": "0?", "solution": "\\boxed{1}", "answer": "1"},
        {"problem": "new", "solution": "\\boxed{2}", "answer": "2"},
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(r) for r in test))
    data = settings("data=math", f"data.path={tmp_path / 'MATH'}", f"data.heldout_path={tmp_path / 'test.jsonl'}").data
    data.prepare()
    assert [p.answer for p in data.train] == [f"\\frac{{{n}}}{{7}}" for n in range(4)]
    assert [p.text for p in data.heldout] == ["new"]  # a question that is trained on evaluates nothing
    folder = tmp_path / "dapo" / "all"
    folder.mkdir(parents=True)
    source = [{"role": "user", "content": "x"}]
    rows = [{"prompt": f"{n}?", "solution": str(n), "source_prompt": source} for n in range(4)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    data = settings("data=dapo_math_17k", f"data.path={tmp_path / 'dapo'}").data
    data.prepare()
    assert sorted(p.answer for p in [*data.train, *data.heldout]) == ["0", "1", "2", "3"]
    assert all(p.solution is None for p in data.train)


def test_nested_columns_and_chat_messages(tmp_path):
    rows = [
        {
            "chat": [{"role": "system", "content": "s"}, {"role": "user", "content": f"{n}?"}],
            "reward_model": {"truth": n},
        }
        for n in range(3)
    ]
    data = task(write(tmp_path / "a.jsonl", *rows), "data.prompt_field=chat", "data.answer_field=reward_model.truth")
    data.prepare()
    assert {(p.text, p.answer) for p in [*data.train, *data.heldout]} == {("0?", "0"), ("1?", "1"), ("2?", "2")}


@pytest.mark.parametrize(
    ("make", "more", "says"),
    [
        (
            lambda d: (d / "a.parquet").write_bytes(b"junk"),
            ["data.path={d}/a.parquet"],
            "could not be read as a .parquet file",
        ),
        (
            lambda d: (d / "a.json").write_text("[1]"),
            ["data.path={d}/a.json"],
            "entry 1 of .*: expected a JSON object, got int",
        ),
        (
            lambda d: (d / "a.csv").write_text("q,a\n1,2\n"),
            ["data.path={d}/a.csv"],
            "expected a column 'prompt' in row 1 .*, found q, a",
        ),
        (
            lambda d: (d / "notes.txt").write_text("x"),
            ["data.path={d}"],
            "expected files of .* that match '\\*', found none among no table",
        ),
        (
            lambda d: None,
            ["data.path=owner/nothing"],
            "the data set owner/nothing could not be downloaded from the hub",
        ),
        (lambda d: None, ["data.path={d}/none.jsonl"], "no local file or folder, and no hub id"),
    ],
)
def test_a_table_that_cannot_be_had_is_one_sentence(tmp_path, make, more, says):
    make(tmp_path)
    data = settings("data=file", *(m.format(d=tmp_path) for m in more)).data
    with pytest.raises(UserError, match=says) as caught:
        data.prepare()
    assert "\n" not in str(caught.value)


def test_the_verifier_is_asked_for_all_rollouts_at_once_and_ends_with_the_run(tmp_path):
    """One run of the embedded model on a table of its own, graded as mathematics in processes."""
    rows = [{"prompt": f"{t}:3 4 5", "answer": str(t)} for t in range(5, 25)]
    path = write(tmp_path / "a.jsonl", *rows)
    made = settings(
        "data=file", f"data.path={path}", "data.verifier=math", "method=grpo", "train.steps=1", "train.prompts_per_step=2",
        "eval.prompts=2", "tracking=none", "data.verifier_workers=1",
    )  # fmt: skip
    calls = []
    start = made.data.start_grading
    made.data.start_grading = lambda pairs: calls.append(len(pairs)) or start(pairs)
    before = set(multiprocessing.active_children())
    assert execute(made, tmp_path / "run", lambda line: None, lambda: False)["state"] == "finished"
    assert len(calls) > 8  # each as soon as it is there
    assert set(multiprocessing.active_children()) <= before
    record = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record[1]["reward/verifier_error_share"] == 0.0
