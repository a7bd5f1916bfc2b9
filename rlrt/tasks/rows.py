"""Rows of a table's file. The content says what the file is; its name decides only where the content does not."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, first_line
from rlrt.tasks.files import ending_of, unpacked

Row = Mapping[str, Any]
PARQUET = b"PAR1"
ARROW_FILE = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"
"""First bytes of pyarrow's files."""
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, and the encodings that they announce. The longer of two with one beginning comes first."""
BINARY = (".parquet", ".arrow", ".feather")
"""Endings of files that are no text."""
DELIMITERS = ",;\t"
HEAD = 100_000
"""Characters in which a table's first two rows are looked for."""


def rows_of(file: Path, key: str) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) for every row of a table: where names the line or row for messages, ``key`` the table's key.

    Raises:
        UserError: for a file that cannot be read, and for a broken line.
    """
    try:
        yield from read(file, key)
    except UserError:
        raise
    except Exception as error:  # each format raises its own types
        raise UserError(
            f"{key}: {str(file)!r} could not be read as a {ending_of(file) or 'JSONL'} file: {first_line(error)}."
        ) from None


def read(file: Path, key: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a file of any format.

    Raises:
        OSError: for a file that would keep its reader waiting, as some below /proc.
    """
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as handle:
        head = handle.read(len(ARROW_FILE))
        if head is None:
            raise OSError("it has nothing to read now, and would be waited for")
        if head.startswith(PARQUET):
            yield from numbered(from_parquet(file), file)
            return
        content = unpacked(head + handle.read(), file, key)
    if content.startswith(PARQUET):
        yield from numbered(from_parquet(io.BytesIO(content)), file)
    elif content.startswith((ARROW_FILE, ARROW_STREAM)):
        yield from numbered(from_arrow(content), file)
    else:
        yield from from_text(decoded(content, file, key), file, key)


def numbered(rows: Iterator[Row], file: Path) -> Iterator[tuple[str, Row]]:
    """Yield rows with their names."""
    for number, row in enumerate(rows, 1):
        yield f"row {number} of {file}", row


def from_parquet(source: Any) -> Iterator[Row]:
    """Yield the rows of a parquet file, batch by batch."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source) as table:
        refuse_twice(table.schema_arrow.names)
        for batch in table.iter_batches():
            batch.validate(full=True)
            yield from as_written(batch).to_pylist()


def from_arrow(content: bytes) -> Iterator[Row]:
    """Yield the rows of an Arrow file or stream, as the library datasets stores them."""
    import pyarrow.ipc

    opened = pyarrow.ipc.open_file if content.startswith(ARROW_FILE) else pyarrow.ipc.open_stream
    with opened(pyarrow.BufferReader(content)) as table:
        rows = table.read_all()
    rows.validate(full=True)  # pyarrow trusts offsets: a damaged file would crash the process
    refuse_twice(rows.schema.names)
    yield from as_written(rows).to_pylist()


def refuse_twice(names: list[str]) -> None:
    """Refuse two columns of one name, of which a row would keep the last.

    Raises:
        ValueError: naming it.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1 and name), None)
    if twice is not None:
        raise ValueError(f"two columns have the name {twice!r}")


def as_written(rows: Any) -> Any:
    """Return an Arrow table or batch whose floats of 32 bits have the value that is written with the fewest digits: 0.1, not
    0.10000000149."""
    import pyarrow

    def of(kind: Any, narrow: Any) -> Any:
        if pyarrow.types.is_float32(kind):
            return narrow
        if pyarrow.types.is_struct(kind):
            return pyarrow.struct([field.with_type(of(field.type, narrow)) for field in kind])
        return pyarrow.list_(of(kind.value_type, narrow)) if pyarrow.types.is_list(kind) else kind

    def schema(narrow: Any) -> Any:
        return pyarrow.schema([field.with_type(of(field.type, narrow)) for field in rows.schema])

    written, wide = schema(pyarrow.string()), schema(pyarrow.float64())
    return rows if written == rows.schema else rows.cast(written).cast(wide)


def decoded(content: bytes, file: Path, key: str) -> str:
    """Return a file's text: UTF-8, or what its byte order mark says.

    Raises:
        UserError: for bytes that are no text, with the line.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if ending_of(file) in BINARY or ending_of(file) != file.suffix.lower() or b"\0" in content:
            raise ValueError(f"it is damaged, or no table, and begins with {content[:8]!r}") from None
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{key}: line {line} of {file} is not {encoding.upper()} text (byte 0x{content[error.start]:02x}); write the file "
            "as UTF-8, for example with: iconv -f latin1 -t utf-8."
        ) from None


def from_text(text: str, file: Path, key: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a text: JSON if it begins like JSON, or else a table with a delimiter if its name or its first two
    lines say so."""
    begins = text.lstrip()[:1]
    ending = ending_of(file)
    if excel := re.match(r"sep=([,;\t])\r?\n", text):  # a line for Excel, which names the delimiter
        yield from from_csv(text[excel.end() :], file, key, excel[1])
        return
    named_csv = ending in (".csv", ".tsv")
    if not begins:
        return
    if begins in "{[" and not (named_csv and is_header(text)):
        yield from from_json(text, file, key)
    elif named_csv or is_delimited(text):
        yield from from_csv(text, file, key, "\t" if ending == ".tsv" else delimiter_of(text))
    elif ending in (".json", ".jsonl", ".ndjson"):
        yield from from_json(text, file, key)
    else:
        raise ValueError(f"it is no JSON, no parquet and no CSV, and begins with {text[:20]!r}")


def is_header(text: str) -> bool:
    """True if a text that begins like JSON is none: a header such as ``[id],prompt``."""
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return delimited_fields(text, delimiter_of(text))[:1] > [1]
    return False


def is_delimited(text: str) -> bool:
    """True if a text's first two rows have the same number of fields, two or more."""
    fields = delimited_fields(text, delimiter_of(text))
    return len(fields) == 2 and fields[0] == fields[1] > 1


def delimited_fields(text: str, delimiter: str) -> list[int]:
    """Return the number of fields of a text's first two rows that are not empty."""
    rows = csv.reader(io.StringIO(text[:HEAD].lstrip("\r\n"), newline=""), delimiter=delimiter)
    return [len(row) for row in itertools.islice((row for row in rows if row), 2)]


def delimiter_of(text: str) -> str:
    """Return the delimiter that gives the first two rows the same number of fields, the most; else one that the header has."""
    fields = {d: delimited_fields(text, d) for d in DELIMITERS}
    even = {d: counts[0] for d, counts in fields.items() if len(set(counts)) == 1 and counts[0] > 1}
    if even:
        return max(even, key=lambda d: even[d])
    return next((d for d, counts in fields.items() if counts[:1] > [1]), ",")


def from_csv(text: str, file: Path, key: str, delimiter: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a delimited text, all cells as they are written. A row with too many cells is refused.

    Raises:
        UserError: for two columns of one name.
    """
    import pandas

    cells = pandas.read_csv(
        io.StringIO(text, newline=""), sep=delimiter, header=None, dtype=str, na_filter=False, keep_default_na=False, engine="c"
    )  # fmt: skip
    rows = cells.itertuples(index=False, name=None)
    names = [str(name).strip() for name in next(rows)]
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise UserError(f"{key}: {file}: expected a name of its own for every column, got {twice[0]!r} twice.")
    yield from numbered((dict(zip(names, row, strict=True)) for row in rows), file)


def from_json(text: str, file: Path, key: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a JSON list of objects, or of objects one after the other, on lines of their own or not.

    Raises:
        UserError: naming the line or entry that is broken or no object.
    """
    for where, row in entries(text, file, key):
        if not isinstance(row, dict):
            raise UserError(f"{key}: {where}: expected a JSON object, got {type(row).__name__}.")
        yield where, row


def entries(text: str, file: Path, key: str) -> Iterator[tuple[str, Any]]:
    """Yield (where, value): a list's entries, or the values of a text. A line ends at a newline and nowhere else."""
    start = text.lstrip()
    if start.startswith("["):
        try:
            whole = json.loads(text)
        except ValueError:
            pass  # not one list: line by line, which names the broken one
        else:
            yield from ((f"entry {n} of {file}", row) for n, row in enumerate(whole, 1))
            return
    if not on_lines(start):
        values = list(sequence(text, 1, file, key))
        rows = by_columns(values[0][1]) if len(values) == 1 else None
        named = values if rows is None else list(enumerate(rows, 1))
        unit = "line" if rows is None else "row"
        yield from ((f"{unit} {number} of {file}", value) for number, value in named)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            for _, value in sequence(line, number, file, key):
                yield f"line {number} of {file}", value


def on_lines(text: str) -> bool:
    """True if the first line is a whole value and others follow: then a broken line is one, not the rest of the file."""
    first, newline, rest = text.partition("\n")
    try:
        json.JSONDecoder().raw_decode(first)
    except ValueError:
        return False
    return bool(newline and rest.strip())


def sequence(text: str, first_line_number: int, file: Path, key: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for the JSON values of a text, one after the other.

    Raises:
        UserError: naming the broken line.
    """
    decoder, position = json.JSONDecoder(), 0
    length, line = len(text.rstrip()), first_line_number
    while position < length:
        begin = position
        while text[begin] in " \t\r\n":
            begin += 1
        line += text.count("\n", position, begin)
        try:
            value, position = decoder.raw_decode(text, begin)
        except ValueError as error:
            broken = first_line_number + text.count("\n", 0, getattr(error, "pos", begin))
            raise UserError(
                f"{key}: line {broken} of {file} is not valid JSON ({getattr(error, 'msg', error)})."
            ) from None
        yield line, value
        line += text.count("\n", begin, position)


def by_columns(value: Any) -> list[Row] | None:
    """Return the rows of an object that is a whole table, column by column (pandas writes such); None for any other."""
    if not isinstance(value, dict) or len(value) < 2:
        return None
    columns = list(value.values())
    if all(isinstance(c, dict) and c.keys() == columns[0].keys() for c in columns):
        return [{name: column[index] for name, column in value.items()} for index in columns[0]]
    alike = all(isinstance(c, list) and len(c) == len(columns[0]) > 1 for c in columns)
    if alike and not any(isinstance(cell, dict) for c in columns for cell in c):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return None
