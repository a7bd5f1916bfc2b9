"""Published word problems, in the layouts in which git repositories and the hub have them; rows in our words."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from rlrt.errors import UserError
from rlrt.tasks.numbers import largest_number
from tests.helpers import settings

WORDS = ("cats", "dogs", "hens", "cows")
MAWPS_GIT = [
    {"input": f"Ann has {n} {w} and gets {n} more. How many?", "target": 2.0 * n} for n, w in enumerate(WORDS, 3)
]
MAWPS_HUB = [{"question": row["input"], "result": f"{row['target']:g}", "chain": "<x>"} for row in MAWPS_GIT]
SVAMP = [
    {"Body": f"Ann has {n} {w}.", "Question": "How many has she?", "Answer": f"{n}.0", "Type": "Sum"}
    for n, w in enumerate(WORDS, 3)
]
GSM8K = [
    {"question": f"Ann has {n} {w}. How many?", "answer": f"She has {n}.\n#### {n}"} for n, w in enumerate(WORDS, 3)
]
LAYOUTS = {
    "mawps": {
        "one folder": {"mawps_addsub.jsonl": MAWPS_GIT[:2], "mawps_singleop.jsonl": MAWPS_GIT[2:], "svamp.jsonl": SVAMP},
        "git": {"mawps/addsub.jsonl": MAWPS_GIT[:2], "mawps/singleop.jsonl": MAWPS_GIT[2:], "svamp/test.jsonl": SVAMP},
        "git, the set's own folder": {"addsub.jsonl": MAWPS_GIT[:2], "singleop.jsonl": MAWPS_GIT[2:]},
        "hub": {"data/train-00000-of-00001-0a.parquet": MAWPS_HUB, "data/test-00000-of-00001-0b.parquet": MAWPS_HUB[:1]},
    },
    "svamp": {
        "one folder": {"svamp.jsonl": SVAMP, "mawps_addsub.jsonl": MAWPS_GIT},
        "git": {"svamp/test.jsonl": SVAMP, "mawps/addsub.jsonl": MAWPS_GIT},
        "its own repository": {"SVAMP.json": SVAMP},
        "hub": {"data/train-00000-of-00001.parquet": SVAMP[:3], "data/test-00000-of-00001.parquet": SVAMP[3:]},
    },
    "gsm8k": {
        "one folder": {"gsm8k_train.jsonl": GSM8K[:3], "gsm8k_test.jsonl": GSM8K[3:]},
        "its own repository": {"data/train.jsonl": GSM8K[:3], "data/test.jsonl": GSM8K[3:]},
        "hub": {"main/train-00000-of-00001.parquet": GSM8K[:3], "main/test-00000-of-00001.parquet": GSM8K[3:]},
    },
}  # fmt: skip
CASES = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]


def put(folder, files):
    for name, rows in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        elif file.suffix == ".json":
            file.write_text(json.dumps(rows))
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder, name, *more):
    data = settings(f"data={name}", f"data.path={folder}", *more).data
    data.prepare()
    return data


@pytest.mark.parametrize(("name", "layout"), CASES, ids=[f"{name}: {layout}" for name, layout in CASES])
def test_a_published_set_is_read_in_each_of_its_layouts(name, layout, tmp_path):
    """The same problems whichever files hold them: questions of two columns joined, 6.0 is 6, other sets' files left alone."""
    put(tmp_path, LAYOUTS[name][layout])
    data = read(tmp_path, name)
    questions = {
        "mawps": [row["input"] for row in MAWPS_GIT],
        "svamp": [f"{row['Body']} {row['Question']}" for row in SVAMP],
        "gsm8k": [row["question"] for row in GSM8K],
    }[name]
    answers = ["6", "8", "10", "12"] if name == "mawps" else ["3", "4", "5", "6"]
    found = {p.text: p.answer for p in [*data.train, *data.heldout]}
    assert found == dict(zip(questions, answers, strict=True))
    assert len(data.heldout) == 1
    assert data.report() == ""


@pytest.mark.parametrize(
    ("text", "largest"),
    [
        ("", 0),
        ("no number", 0),
        ("7 and 12", 12),
        ("1,250 men", 1250),
        ("at (3,4)", 4),
        ("2.5 m", 2.5),
        ("twelve of 3", 3),
        ("-8", 8),
    ],
)
def test_the_largest_number_of_a_text(text, largest):
    assert largest_number(text) == largest


def test_problems_with_a_larger_number_are_dropped_and_counted(tmp_path):
    """Questions have 3, 4, 5, 6 and answers 6, 8, 10, 12: up to 9 the first two stay, since 10 and 12 are over."""
    put(tmp_path, LAYOUTS["mawps"]["one folder"])
    data = read(tmp_path, "mawps", "data.max_number=9")
    assert sorted(p.answer for p in [*data.train, *data.heldout]) == ["6", "8"]
    assert data.report() == "2 x number over 9"


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        (
            "mawps",
            {"id": "1", "problem": "3 and 4?", "result": "7"},
            r"data\.prompt_field: expected a column 'input' or 'question' in row 1 of .*, found id, problem, result; "
            r"set data\.prompt_field to one that is there\.",
        ),
        (
            "mawps",
            {"question": "3 and 4?", "results": "7"},
            r"data\.answer_field: expected a column 'target' or 'result' in .*; set data\.answer_field to .* mean 'results'",
        ),
        (
            "svamp",
            {"body": "3 apples.", "Question": "3 and 4?", "Answer": "7"},
            r"data\.prompt_field: expected a column 'Body' in .*, found body, .*; set data\.prompt_field to .* 'body'",
        ),
    ],
)
def test_columns_of_other_names_are_named_with_the_key_to_set(tmp_path, name, row, says):
    """The hub's columns were never seen here: where they differ, one sentence says which came and which key to set."""
    put(tmp_path, {"data/train-00000-of-00001.parquet": [row] * 3})
    with pytest.raises(UserError, match=f"^{says}") as caught:
        read(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_files_of_other_names_on_the_hub_are_named_with_the_key_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    names = ["README.md", "main/train.parquet", "main/test.parquet"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *a, **k: names)
    with pytest.raises(
        UserError, match=r"^data\.files: .* found none among main/train\.parquet, main/test\.parquet\.$"
    ):
        read("MU-NLPC/Calc-mawps", "mawps")

    def fail(*a, **k):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    with pytest.raises(UserError, match="found none among no table at all"):
        read("MU-NLPC/Calc-mawps", "mawps")


@pytest.mark.parametrize("example", ["{question: 'How many?', reply: '7'}", "{question: 'How many?', answer: ' '}"])
def test_an_example_has_question_and_answer(example):
    with pytest.raises(
        UserError, match=r"data\.examples: expected \{question: TEXT, answer: TEXT\} for each example, got"
    ):
        settings("data=file", "data.path=x.jsonl", f"data.examples=[{example}]")


@pytest.mark.parametrize("value", ["[{question: 1, answer: 2}]", "[abc]", "3", "null"])
def test_examples_of_another_type_are_told_what_an_example_is(value):
    """``a list [A,B]`` would say nothing to who typed a list."""
    with pytest.raises(
        UserError, match=r"^data\.examples: expected a list of mappings with texts .*, numbers in quotes too"
    ):
        settings("data=file", "data.path=x.jsonl", f"data.examples={value}")
