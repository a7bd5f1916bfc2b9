"""Columns, types of cells, chat messages and formats of answers: understood, or counted by name with an example."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from rlrt.errors import UserError
from rlrt.tasks.cells import ANSWERS, ASKS, NotUnderstood, number_text, text_of
from rlrt.tasks.finals import final_of
from tests.helpers import settings


def read(path, *more):
    data = settings("data=file", f"data.path={path}", *more).data
    data.prepare()
    return data


def table(tmp_path, kind, rows):
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif kind == "json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def problems(data):
    return sorted((p.text, p.answer, p.solution) for p in [*data.train, *data.heldout])


KINDS = ("jsonl", "json", "parquet")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("row", "name"),
    [
        (lambda v: {"extra": {"x": v}}, "extra.x"),
        (lambda v: {"extra.x": v}, "extra.x"),
        (lambda v: {"extra": {"x.y": {"z": v}}}, "extra.x.y.z"),
        (lambda v: {"extra": {"other": 1}, "extra.x": v}, "extra.x"),
        (lambda v: {"extra": [{"x": v}, {"x": "second"}]}, "extra.0.x"),
        (lambda v: {"extra": {"x": ["first", v]}}, "extra.x.1"),
    ],
)
def test_dots_lead_into_nested_columns_and_belong_to_names_alike_everywhere(tmp_path, kind, row, name):
    """Question, answer and solution by the same name."""
    for field in ("prompt", "answer", "solution"):
        rows = [{"prompt": f"q{n}", "answer": f"a{n}", "solution": f"s{n}"} for n in range(3)]
        rows = [{k: v for k, v in r.items() if k != field} | row(r[field]) for r in rows]
        data = read(table(tmp_path, kind, rows), f"data.{field}_field={name}")
        assert problems(data) == [(f"q{n}", f"a{n}", f"s{n}") for n in range(3)]
        assert not data.dropped


@pytest.mark.parametrize("name", ["extra.x", "extra.list.1", "extra.deep.x.y"])
def test_nested_columns_of_csv_are_json_texts(tmp_path, name):
    """As data frames with nested cells are written; what is no JSON stays text."""
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["prompt", "extra"])
        for n in range(3):
            inside = {"x": f"a{n}", "list": ["first", f"a{n}"], "deep": {"x.y": f"a{n}"}}
            writer.writerow([json.dumps([message("no"), message(f"[q{n}]")]), json.dumps(inside)])
        writer.writerow(["{1, 2} or [3, 4]", json.dumps({"x": "a3", "list": [1, "a3"], "deep": {"x": {"y": "a3"}}})])
    data = read(file, f"data.answer_field={name}")
    assert [(q, a) for q, a, _ in problems(data)] == [
        *((f"[q{n}]", f"a{n}") for n in range(3)),
        ("{1, 2} or [3, 4]", "a3"),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("field", "more", "reason"),
    [("answer", (), "no answer"), ("prompt", (), "no question"), ("truth", ("data.answer_field=truth",), "no answer")],
)
def test_rows_that_lack_a_key_are_counted(tmp_path, kind, field, more, reason):
    rows = [{"prompt": f"q{n}", "answer": "1", "truth": "1"} for n in range(5)]
    del rows[1][field], rows[3][field]
    data = read(table(tmp_path, kind, rows), *more)
    assert len(problems(data)) == 3
    assert dict(data.dropped) == {reason: 2}
    if kind != "parquet":  # it has the column in every row
        assert " has only " in data.report()


def test_a_nested_key_that_some_rows_lack(tmp_path):
    rows = [{"prompt": f"q{n}", "m": {"truth": "1"} if n % 2 else {}} for n in range(6)] + [{"prompt": "x", "m": None}]
    data = read(table(tmp_path, "jsonl", rows), "data.answer_field=m.truth")
    assert dict(data.dropped) == {"no answer": 4}


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        (
            "prompt_field",
            "promt",
            r"found prompt, answer, extra, extra\.solution; set data\.prompt_field to one that is .* mean 'prompt'",
        ),
        (
            "answer_field",
            "target|Answer|result",
            r"; set data\.answer_field to one that is there\. Did you mean 'answer'",
        ),
        ("answer_field", "answers", "Did you mean 'answer'"),
        ("solution_field", "extra.solutoin", r"Did you mean 'extra\.solution'"),
        ("hint_field", "extra.solutions", r"Did you mean 'extra\.solution'"),
        ("prompt_field", "[prompt,body]", "found prompt, answer"),
    ],
)
def test_a_column_that_no_row_has_is_refused_with_the_nearest(tmp_path, key, name, says):
    rows = [{"prompt": f"q{n}", "answer": "1", "extra": {"solution": "s"}} for n in range(3)]
    with pytest.raises(UserError, match=rf"^data\.{key}: expected a column .* in line 1 of .*{says}") as caught:
        read(table(tmp_path, "jsonl", rows), f"data.{key}={name}")
    assert "\n" not in str(caught.value)


def test_a_file_of_a_folder_without_the_column_is_refused(tmp_path):
    for name, column in (("a", "answer"), ("b", "other")):
        (tmp_path / name).mkdir()
        table(tmp_path / name, "jsonl", [{"prompt": f"{name}{n}", column: "1"} for n in range(3)])
    with pytest.raises(UserError, match=r"expected a column 'answer' in line 1 of .*b.a\.jsonl"):
        read(tmp_path)


# Types


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (25, "25"),
        (25.0, "25"),
        (-3.0, "-3"),
        (0.5, "0.5"),
        (1e-7, "1e-07"),
        (2.0**60, str(2.0**60)),
        (10**30, str(10**30)),
        (Decimal("1.50"), "1.50"),
        (Decimal("2.00"), "2"),
        (Decimal("3"), "3"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.10"), "0.10"),
        (Decimal("-0.25"), "-0.25"),
    ],
)
def test_numbers_are_written_plainly(value, text):
    assert number_text(value) == text
    assert text_of([value], ANSWERS) == text


def test_decimal_and_float_columns_of_parquet(tmp_path):
    rows = [
        {"prompt": f"q{n}", "answer": v} for n, v in enumerate([Decimal("1.50"), Decimal("2.00"), Decimal("13.25")])
    ]
    assert [a for _, a, _ in problems(read(table(tmp_path, "parquet", rows)))] == ["1.50", "2", "13.25"]
    rows = [{"prompt": f"q{n}", "answer": v} for n, v in enumerate([25.0, None, 0.5, float("nan")])]
    data = read(table(tmp_path, "parquet", rows))
    assert [a for _, a, _ in problems(data)] == ["25", "0.5"]
    assert dict(data.dropped) == {"no answer": 2}


def test_a_whole_number_that_became_a_float_is_right(tmp_path):
    rows = [{"prompt": f"q{n}", "answer": v} for n, v in enumerate([25.0, 7.0, 1.5])]
    data = read(table(tmp_path, "jsonl", rows))
    by_text = {p.text: p for p in [*data.train, *data.heldout]}
    assert data.grade(by_text["q0"], "so \\boxed{25}").correct
    assert data.grade(by_text["q1"], "7").correct
    assert not data.grade(by_text["q2"], "\\boxed{1}").correct


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_one_value(tmp_path, kind):
    rows = [{"prompt": [f"q{n}"], "answer": [str(n)], "solution": [f"s{n}"]} for n in range(3)]
    assert problems(read(table(tmp_path, kind, rows))) == [(f"q{n}", str(n), f"s{n}") for n in range(3)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (["1", "2"], "a list of several values"),
        ({"value": 1}, "an object"),
        (True, "true or false"),
        (float("inf"), "an infinite number"),
        ("1 \ud835 2", "text with half a character (a lone surrogate)"),
        ([["1"], ["2"]], "a list of several values"),
    ],
)
@pytest.mark.parametrize("column", ["answer", "prompt", "solution"])
def test_what_is_not_understood_is_counted_by_type_with_an_example(tmp_path, value, kind, column):
    rows = [{"prompt": f"q{n}", "answer": "1", "solution": "s"} for n in range(5)]
    rows[2][column] = rows[4][column] = value
    data = read(table(tmp_path, "jsonl", rows))
    what = {"answer": "answer", "prompt": "question", "solution": "solution"}[column]
    more = " (the problem stays without it)" if column == "solution" else ""
    assert dict(data.dropped) == {f"{what} is {kind}{more}": 2}
    assert f"2 x {what} is {kind}{more} (for example " in data.report()
    assert "in line 3 of " in data.report()
    assert len(problems(data)) == (5 if column == "solution" else 3)
    data.report().encode()  # whatever the example is, it can be printed


def test_dates_and_bytes_of_parquet(tmp_path):
    day = datetime.date(2024, 2, 1)
    rows = [{"prompt": f"q{n}", "answer": f"é{n}".encode(), "day": day, "raw": b"\xff\xfe"} for n in range(3)]
    file = table(tmp_path, "parquet", rows)
    assert [a for _, a, _ in problems(read(file))] == ["é0", "é1", "é2"]
    for name, kind in (("day", "a date or time"), ("raw", "bytes")):
        with pytest.raises(UserError, match=rf"found 0 \(3 x answer is {kind} \(for example .* in row 1 of "):
            read(file, f"data.answer_field={name}")


# Chat messages


def message(text, role="user"):
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    "chat",
    [
        lambda q: [message("be brief", "system"), message(q)],
        lambda q: [message("first"), message("yes", "assistant"), message(q)],
        lambda q: message(q),
        lambda q: [message([{"type": "text", "text": q}])],
        lambda q: [message([q])],
        lambda q: [{"from": "system", "value": "x"}, {"from": "human", "value": q}],
        lambda q: [message(q), message("an answer", "assistant")],
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_chat(tmp_path, chat, kind):
    rows = [{"prompt": chat(f"{n} + 1?"), "answer": n} for n in range(3)]
    data = read(table(tmp_path, kind, rows))
    assert [q for q, _, _ in problems(data)] == ["0 + 1?", "1 + 1?", "2 + 1?"]


def test_the_answer_of_a_chat_is_the_assistants(tmp_path):
    rows = [{"chat": [message(f"{n}?"), message(f"so \\boxed{{{n}}}", "assistant")]} for n in range(3)]
    more = [f"data.{name}_field=chat" for name in ("prompt", "answer", "solution")]
    data = read(table(tmp_path, "jsonl", rows), *more, "data.answer_format=boxed")
    assert problems(data) == [(f"{n}?", str(n), f"so \\boxed{{{n}}}") for n in range(3)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([message("x", "assistant")], "chat messages, none of role user"),
        (
            [message([{"type": "image_url", "image_url": "http://x"}])],
            r"a message with a part that is no text \(image_url\)",
        ),
        (
            [message([{"type": "text", "text": "Look"}, {"type": "image"}])],
            r"a message with a part that is no text \(image\)",
        ),
        ([message({"a": 1})], "an object"),
    ],
)
def test_chat_that_is_no_question_is_named(value, kind):
    with pytest.raises(NotUnderstood, match=kind):
        text_of(value, ASKS)


# Formats


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so #### (1,2)", "(1,2)"),
        ("#### 1,234", "1234"),
        ("#### -1,234,567.5", "-1234567.5"),
        ("#### $1,200", "$1200"),
        ("#### 3.5%", "3.5%"),
        ("#### (1,234)", "(1,234)"),
        ("#### [1,200]", "[1,200]"),
        ("#### 1,2", "1,2"),
        ("#### 1, 2, 3", "1, 2, 3"),
        ("a #### 1 #### x,y", "x,y"),
        ("####\n7\n", "7"),
        ("#### 7\nsome talk", "7"),
    ],
)
def test_after_hashes_only_thousands_lose_commas(text, answer):
    assert final_of(text, "hash") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed 2", "2"),
        ("so \\boxed -25.", "-25"),
        ("\\boxed 1{,}234", "1{,}234"),
        ("\\boxed\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\boxed C.", "C"),
        ("\\fbox{3}", "3"),
        ("\\fbox{$x+1$}", "x+1"),
        ("\\framebox{6}", "6"),
        ("\\boxed {4}", "4"),
        ("\\boxed\n{4}", "4"),
        ("\\boxed{\\text{a}} and \\boxed{5}", "5"),
        ("\\boxed{5}, not \\boxed", "5"),
        ("we put it into \\boxed form: \\boxed{7}", "7"),
        ("\\boxed{\\left\\{1,2\\right.}", "\\left\\{1,2\\right."),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{1", ""),
        ("\\boxed{}", ""),
    ],
)
def test_boxes_of_all_forms(text, answer):
    assert final_of(text, "boxed") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("9 (apples)", "9"),
        ("145.0", "145"),
        ("9", "9"),
        ("-7", "-7"),
        ("−7 degrees", "-7"),
        ("1,234 dollars", "1234"),
        ("\\$18.90", "18.90"),
        ("$18.90", "18.90"),
        ("-$5", "-5"),
        ("€ 3.5", "3.5"),
        ("$9$", "9"),
        ("25%", "25"),
        ("25\\%", "25"),
        ("90°", "90"),
        ("90^\\circ", "90"),
        ("20°C", "20"),
        ("12 km/h", "12"),
        ("12 \\text{ cm}", "12"),
        ("12\\,\\mathrm{cm}^2", "12"),
        ("6 m^2", "6"),
        ("6 m²", "6"),
        ("6m", "6"),
        ("5 apples.", "5"),
        ("3 miles per hour", "3"),
        ("4 square feet", "4"),
        ("1/2 cup", "\\frac{1}{2}"),
        ("6/8", "\\frac{3}{4}"),
        ("22/2", "11"),
        ("1 1/2 cups", "\\frac{3}{2}"),
        ("0.50", "0.50"),
        ("6.02e23", "6.02 \\times 10^{23}"),
    ],
)
def test_a_number_with_its_unit(text, answer):
    assert final_of(text, "number") == answer


@pytest.mark.parametrize(
    "text",
    [
        "9 or 10", "2 hours 30 minutes", "3 million", "5 dozen", "5:30", "3:4", "10 (students); 5 (teachers)", "yes", "x = 9",
        "9x", "9 + 1", "9 - x", "2 pi", "5 and a half", "at least 9", "4 + 7", "4k", "3M", "5!", "(1,2)", "1,2", "007",
        "2^10", "7 pm", "2nd", "9 plus tax", "A", "9 (or 10)", "9 or more",
        "5 hundredths", "5 tenths", "3 crore", "2 dozens", "5 quadrillion", "5 (incorrect)", "0.3 recurring", "5 doubled",
    ],
)  # fmt: skip
def test_what_is_not_one_number_with_a_unit_is_named(text):
    with pytest.raises(NotUnderstood, match="text that is not one number with a unit"):
        final_of(text, "number")


@pytest.mark.parametrize(
    ("answer_format", "answers", "kind"),
    [
        ("hash", ["7", "so 7"], "text without ####"),
        ("boxed", ["7", "so $7$"], "text without a box"),
        ("number", ["yes", "9 or 10"], "text that is not one number with a unit"),
    ],
)
def test_an_answer_without_its_place_is_counted_by_name(tmp_path, answer_format, answers, kind):
    good = {"hash": "#### 1", "boxed": "\\boxed{1}", "number": "1 cm"}[answer_format]
    rows = [{"prompt": f"q{n}", "answer": a} for n, a in enumerate([good, good, *answers])]
    data = read(table(tmp_path, "jsonl", rows), f"data.answer_format={answer_format}")
    assert dict(data.dropped) == {f"answer is {kind}": 2}
    assert f"(for example {answers[0]!r} in line 3 of" in data.report()


@pytest.mark.parametrize("verifier", ["exact", "math"])
def test_published_answers_with_units_are_right(tmp_path, verifier):
    rows = [{"prompt": f"q{n}", "answer": a} for n, a in enumerate(["9 (apples)", "145.0", "\\$18.90", 27.0])]
    data = read(table(tmp_path, "jsonl", rows), "data.answer_format=number", f"data.verifier={verifier}")
    answers = {"q0": "9", "q1": "145", "q2": "18.90", "q3": "27"}
    try:
        for prompt in [*data.train, *data.heldout]:
            assert data.grade(prompt, f"So \\boxed{{{answers[prompt.text]}}}").correct
            assert not data.grade(prompt, "So \\boxed{3}").correct
    finally:
        data.close()
