"""Tables as they lie on disks: line ends, names that lie, compression, encodings, papers beside the data."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from rlrt.errors import UserError
from rlrt.tasks.rows import rows_of
from tests.helpers import settings

ROWS = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table_csv(rows=ROWS, delimiter=",", end="\r\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table_parquet(rows=ROWS):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def found(path, *more):
    """Question and answer of all problems that data=file finds, and what it says."""
    data = settings("data=file", f"data.path='{path}'", *more).data
    data.prepare()
    return sorted((p.text, p.answer) for p in [*data.train, *data.heldout]), data.report()


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


EXPECTED = sorted((row["prompt"], row["answer"]) for row in ROWS)


def brief(value):
    """The name of a case: contents hold times, and must not be in it."""
    return value[:40] if isinstance(value, str) and value.isprintable() else "content"


@pytest.mark.parametrize(
    ("name", "sign"),
    [(name, sign) for name in ("a.jsonl", "a.json", "a.csv") for sign in "\u2028\u2029\x85\x7f"]
    + [("a.csv", sign) for sign in "\x0b\x0c\x1c\x1e"],  # JSON takes no raw control character
)
def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path, sign, name):
    rows = [*ROWS, {"prompt": f"Line one{sign}line two: 2 + 2?", "answer": "4"}]
    text = table_csv(rows) if name == "a.csv" else "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    problems, said = found(put(tmp_path / name, text))
    assert (f"Line one{sign}line two: 2 + 2?", "4") in problems
    assert len(problems) == 5
    assert said == ""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("last", [True, False])
def test_ends_of_lines_of_all_systems(tmp_path, end, kind, last):
    text = LINES.replace("\n", end) if kind == "jsonl" else table_csv(end=end)
    assert found(put(tmp_path / f"a.{kind}", text if last else text.removesuffix(end))) == (EXPECTED, "")


@pytest.mark.parametrize(
    "name",
    [
        "a.json",
        "a.jsonl",
        "a.ndjson",
        "a.JSONL",
        "a.csv",
        "a.tsv",
        "a.parquet",
        "a.txt",
        "problems",
        "a.b.c",
        "a.arrow",
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "".join(json.dumps(row) for row in ROWS),
        "\n\n" + LINES + "\n \n",
        json.dumps({name: {n: r[name] for n, r in enumerate(ROWS)} for name in ROWS[0]}),
        json.dumps({k: [r[k] for r in ROWS] for k in ROWS[0]}),
        table_parquet(),
    ],
    ids=["lines", "list", "indented list", "indented objects", "no lines", "empty lines", "by column", "lists", "parquet"],
)  # fmt: skip
def test_the_content_says_what_a_file_is(tmp_path, name, content):
    assert found(put(tmp_path / name, content)) == (EXPECTED, "")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet", "a.txt", "a.csv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_with_delimiters_under_any_name(tmp_path, name, delimiter):
    assert found(put(tmp_path / name, table_csv(delimiter=delimiter))) == (EXPECTED, "")


@pytest.mark.parametrize(
    "text",
    [
        'answer;"prompt"\n1;"a, b, c"\n2;d\n',
        'answer;"prompt"\r\n1;a, b, c\r\n2;d\r\n',
        "sep=;\r\nanswer;prompt\r\n1;a, b, c\r\n2;d\r\n",
        'sep=,\nanswer,prompt\n1,"a, b, c"\n2,d\n',
        '"answer"\t"prompt"\n1\ta, b, c\n2\td\n',
        'answer,prompt,"note; long"\n1,"a, b, c",x\n2,d,"y; z"\n',
    ],
)
def test_the_delimiter_is_the_one_that_makes_columns(tmp_path, text):
    assert found(put(tmp_path / "a.csv", text)) == ([("a, b, c", "1"), ("d", "2")], "")


def test_a_header_that_begins_like_json_is_a_header(tmp_path):
    text = table_csv([{"[id]": n, **row} for n, row in enumerate(ROWS)])
    assert found(put(tmp_path / "a.csv", text)) == (EXPECTED, "")


def arrow(write):
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(ROWS)
    with write(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_arrow_files_and_streams(tmp_path):
    for number, write in enumerate((pyarrow.ipc.new_file, pyarrow.ipc.new_stream)):
        assert found(put(tmp_path / f"{number}.arrow", arrow(write))) == (EXPECTED, "")
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.feather")
    assert found(tmp_path / "a.feather") == (EXPECTED, "")


def test_floats_of_32_bits_are_read_as_they_are_written(tmp_path):
    """0.1 of 32 bits is 0.10000000149 of 64, an answer that nobody gives."""
    short = pyarrow.float32()
    columns = {
        "prompt": pyarrow.array(["a?", "b?", "c?"]),
        "answer": pyarrow.array([0.1, 25.0, 2.675], short),
        "listed": pyarrow.array([[0.1], [25.0], [2.675]], pyarrow.list_(short)),
        "nested": pyarrow.array([{"x": 0.1}, {"x": 25.0}, {"x": 2.675}], pyarrow.struct([("x", short)])),
    }
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    for name in ("a.parquet", "a.feather"):
        for column in ("answer", "listed", "nested.x"):
            problems, _ = found(tmp_path / name, f"data.answer_field={column}")
            assert problems == [("a?", "0.1"), ("b?", "25"), ("c?", "2.675")]


@pytest.mark.parametrize("twice", ["answer", "prompt", "extra"])
def test_two_columns_of_one_name_are_refused_in_arrow_and_parquet(tmp_path, twice):
    texts = pyarrow.array(["1", "2", "3"])
    table = pyarrow.table([texts] * 4, names=["prompt", "answer", "extra", twice])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(UserError, match=f"two columns have the name '{twice}'"):
            found(tmp_path / name)


PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda b: packed(b, "zstd"),
    "lz4": lambda b: packed(b, "lz4"),
}


def packed(content, name):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, name) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("jsonl", LINES.encode()),
        ("json", json.dumps(ROWS).encode()),
        ("csv", table_csv().encode()),
        ("parquet", table_parquet()),
    ],
    ids=brief,
)
def test_compressed_files_by_name_by_content_and_in_a_folder(tmp_path, ending, kind, content):
    file = put(tmp_path / f"a.{kind}.{ending}", PACK[ending](content))
    assert found(file) == (EXPECTED, "")
    assert found(tmp_path) == (EXPECTED, "")
    assert found(file.rename(tmp_path / f"a.{kind}")) == (EXPECTED, "")


def test_two_compressed_members_and_one_inside_another(tmp_path):
    half = len(LINES.split("\n")[0]) + 1
    both = gzip.compress(LINES[:half].encode()) + gzip.compress(LINES[half:].encode(), mtime=0)
    assert found(put(tmp_path / "a.jsonl.gz", both)) == (EXPECTED, "")
    assert found(put(tmp_path / "b.jsonl.gz.xz", lzma.compress(both))) == (EXPECTED, "")


@pytest.mark.parametrize(
    "encode",
    [
        lambda t: codecs.BOM_UTF8 + t.encode(),
        lambda t: t.encode("utf-16"),
        lambda t: codecs.BOM_UTF16_BE + t.encode("utf-16-be"),
        lambda t: t.encode("utf-32"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_byte_order_marks(tmp_path, encode, kind):
    rows = [{"prompt": f"Größe {n}?", "answer": str(n)} for n in range(3)]
    text = {
        "jsonl": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows),
        "csv": table_csv(rows),
        "json": json.dumps(rows, ensure_ascii=False),
    }[kind]
    problems, said = found(put(tmp_path / f"a.{kind}", encode(text)))
    assert problems == [(r["prompt"], r["answer"]) for r in rows]
    assert said == ""


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("column", ["solution", "prompt"])
def test_cells_of_any_length(tmp_path, kind, column):
    rows = [
        {"prompt": f"{n}", "answer": "1", "solution": "s"} | {column: f"{n}" + 'x, "y"\n' * 30_000} for n in range(3)
    ]
    content = {
        "jsonl": "".join(json.dumps(r) + "\n" for r in rows),
        "json": json.dumps(rows),
        "csv": table_csv(rows),
        "parquet": table_parquet(rows),
    }[kind]
    data = settings("data=file", f"data.path={put(tmp_path / f'a.{kind}', content)}").data
    data.prepare()
    longest = max(len(p.solution) if column == "solution" else len(p.text) for p in data.train)
    assert longest >= 209_999


def test_cells_are_as_they_are_written(tmp_path):
    rows = [
        {"prompt": str(n), "answer": a} for n, a in enumerate(["007", "1e5", "NA", "null", "1,234", "0.50", "True"])
    ]
    problems, said = found(put(tmp_path / "a.csv", table_csv(rows)))
    assert [a for _, a in problems] == [r["answer"] for r in rows]
    assert said == ""


PAPERS = ["dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", ".cache/huggingface/x.json"]


@pytest.mark.parametrize(
    "paper", [*PAPERS, ".hidden.jsonl", "__MACOSX/train.jsonl", "README.md", ".gitattributes", "_SUCCESS"]
)
def test_papers_of_the_hub_beside_the_data(tmp_path, paper):
    put(tmp_path / "train.jsonl", LINES)
    (tmp_path / paper).parent.mkdir(parents=True, exist_ok=True)
    put(tmp_path / paper, '{"a": 1}')
    assert found(tmp_path) == (EXPECTED, "")


def test_a_paper_is_read_where_the_pattern_names_it(tmp_path):
    put(tmp_path / "state.json", LINES)
    put(tmp_path / "train.jsonl", '{"no": 1}')
    assert found(tmp_path, "data.files=state.json") == (EXPECTED, "")


def test_a_folder_of_one_object_per_file(tmp_path):
    for number, row in enumerate(ROWS):
        put(tmp_path / f"{number}.json", json.dumps(row, indent=4))
    put(tmp_path / "x.json", '{"prompt": "no answer here"}')
    problems, said = found(tmp_path)
    assert problems == EXPECTED
    assert said.startswith("1 x no answer (for example line 1 of ")


def test_folders_named_like_partitions_add_no_columns(tmp_path):
    folder = tmp_path / "answer=9"
    folder.mkdir()
    put(folder / "a.parquet", table_parquet())
    assert found(folder / "a.parquet") == (EXPECTED, "")


def zipped():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return sink.getvalue()


def tarred():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(LINES)
        archive.addfile(info, io.BytesIO(LINES.encode()))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", zipped(), "is a zip archive or a workbook; unpack it"),
        ("a.json.gz", gzip.compress(zipped()), "is a zip archive"),
        ("a.tar.gz", tarred(), "is a tar archive; unpack it and give the folder"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of Git LFS.* git lfs pull"),
        ("a.jsonl", "<!DOCTYPE html><html>404</html>", "a page of HTML or XML"),
        ("a.csv", b"SQLite format 3\x00" + bytes(9), "is an SQLite database"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-20], "could not be read as a .jsonl file: Truncated"),
        ("a.jsonl.xz", lzma.compress(LINES.encode() * 99)[:-20], "could not be read as a .jsonl file"),
        ("a.parquet", table_parquet()[:-20], "could not be read as a .parquet file"),
        ("a.parquet", b"\xff" + table_parquet()[1:], "could not be read as a .parquet file: it is damaged, or no table"),
        ("a.jsonl.gz", b"\xff" + gzip.compress(LINES.encode())[1:], "could not be read as a .jsonl file: it is damaged"),
        ("a.parquet", b"junk", "could not be read as a .parquet file: it is no JSON, no parquet and no CSV"),
        ("a.jsonl", b'{"prompt": "caf\xe9", "answer": "1"}\n', "line 1 of .* is not UTF-8 text .byte 0xe9.; .*iconv"),
        ("a.csv", b"prompt,answer\nx,1\ncaf\xe9,2\n", "line 3 of .* is not UTF-8 text"),
        ("a.csv", "prompt,answer\nx,1\ny, z,2\n", "Expected 2 fields in line 3, saw 3"),
        ("a.csv", 'prompt,answer\nx,1\n"y,2\n', "EOF inside string"),
        ("a.csv", "prompt,answer,answer\nx,1,2\n", "a name of its own for every column, got 'answer' twice"),
        ("a.jsonl", LINES + '{"prompt": "x", \n' + LINES, "line 5 of .* is not valid JSON"),
        ("a.jsonl", '{"prompt": "x",\n', "line 2 of .* is not valid JSON|line 1 of .* is not valid JSON"),
        ("a.jsonl", "prompt answer\n", "line 1 of .* is not valid JSON"),
        ("a.json", "[1, 2]", "entry 1 of .*: expected a JSON object, got int"),
        ("a.json", '"x"', "line 1 of .*: expected a JSON object, got str|not valid JSON"),
        ("a.json", '{"version": 1, "data": []}', "expected a column 'prompt' in line 1 of .*, found version, data"),
        ("a.json", json.dumps({"data": ROWS}), "found data.* Perhaps the rows are inside 'data': write that list"),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS}), "found train, test.* Perhaps the rows are inside 'train'"),
        ("a.jsonl", "[" * 100_000, "could not be read|not valid JSON"),
        ("a.jsonl", "", r"expected at least 2 questions in .*, found 0\."),
    ],
    ids=brief,
)  # fmt: skip
def test_what_is_no_table_is_one_sentence(tmp_path, name, content, says):
    file = put(tmp_path / name, content)
    with pytest.raises(UserError, match=says) as caught:
        found(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data.")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("write", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_a_damaged_arrow_file_is_refused_or_read_but_ends_no_process(tmp_path, write):
    """pyarrow trusts the offsets of a file: without a check a changed byte is a segmentation fault."""
    whole = arrow(write)
    for place in range(0, len(whole), 7):
        file = put(tmp_path / "a.arrow", whole[:place] + b"\x7f" + whole[place + 1 :])
        with contextlib.suppress(UserError):
            found(file)


def test_rows_name_their_places(tmp_path):
    jsonl = put(tmp_path / "a.jsonl", "\n" + LINES)
    assert [where.split(" of ")[0] for where, _ in rows_of(jsonl, "data.path")] == [
        "line 2",
        "line 3",
        "line 4",
        "line 5",
    ]
    indented = put(tmp_path / "b.json", "\n".join(json.dumps(row, indent=1) for row in ROWS[:2]))
    assert [where.split(" of ")[0] for where, _ in rows_of(indented, "data.path")] == ["line 1", "line 5"]
    table = put(tmp_path / "c.csv", table_csv())
    assert [where.split(" of ")[0] for where, _ in rows_of(table, "data.path")][:2] == ["row 1", "row 2"]


def test_a_file_that_would_keep_its_reader_waiting_is_refused(tmp_path):
    """Such as /proc/kmsg; here a pipe that somebody holds open and writes nothing into."""
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    try:
        with pytest.raises(
            UserError, match=r"data\.path: .*pipe\.jsonl.* could not be read .*it has nothing to read now"
        ):
            next(rows_of(pipe, "data.path"))
    finally:
        os.close(writer)
        os.close(reader)
