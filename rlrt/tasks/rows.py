"""Rows of a table from a local file or folder, or from the hub: JSONL, JSON, parquet, CSV."""

from __future__ import annotations

import csv
import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, nearest
from rlrt.paths import local_folder

KINDS = (".jsonl", ".json", ".parquet", ".csv")


def table_files(path: str, pattern: str, revision: str | None, where: str) -> list[Path]:
    """Return the files at a path: the file itself, a folder's matching files, or those of a data set on the hub.

    Args:
        path, pattern, revision: keys of a table.
        where: name of the key that gave the path, for messages.

    Raises:
        UserError: for a path that is neither local nor on the hub, or a pattern that matches no file.
    """
    local = local_folder(path)
    if local is not None and local.is_file():
        return [local]
    folder = local if local is not None else from_hub(path, pattern, revision, where)
    tables = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in KINDS)
    names = {p: str(p.relative_to(folder)) for p in tables}
    matching = [p for p in tables if fnmatch.fnmatch(names[p], pattern)]
    if not matching:
        raise UserError(
            f"{where.removesuffix('path')}files: expected files of {path} that match {pattern!r}, found none among "
            f"{', '.join(list(names.values())[:8]) or 'no table at all'}."
        )
    return matching


def from_hub(path: str, pattern: str, revision: str | None, where: str) -> Path:
    """Return a local copy of a data set's matching files.

    Raises:
        UserError: saying how to give a file instead.
    """
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"{where}: {path!r} could not be read: it is no local file or folder, and no hub id OWNER/NAME."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, repo_type="dataset", revision=revision, allow_patterns=[pattern]))
    except Exception as error:  # the hub's and the http library's own types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{where}: the data set {path} could not be downloaded from the hub ({reason}); get it elsewhere and give its "
            f"file or folder as {where}=/path/to/it."
        ) from None


def rows_of(file: Path, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, row) for every row of a table: where names the line or row for messages, ``key`` the table's key.

    Raises:
        UserError: for a file that cannot be read, and for a broken line.
    """
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            for number, row in enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1):
                yield f"row {number} of {file}", row
        elif file.suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as handle:
                for number, row in enumerate(csv.DictReader(handle), 1):
                    yield f"row {number} of {file}", row
        elif file.suffix == ".json":
            yield from from_json(file, key)
        else:
            for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
                if line.strip():
                    yield f"line {number} of {file}", from_line(line, f"line {number} of {file}", key)
    except UserError:
        raise
    except Exception as error:  # each format raises its own types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{key}: {str(file)!r} could not be read as a {file.suffix or 'JSONL'} file: {reason}."
        ) from None


def from_json(file: Path, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a file that is one JSON list of objects."""
    rows = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{key}: {file}: expected a JSON list of objects.")
    for number, row in enumerate(rows, 1):
        yield f"entry {number} of {file}", row


def from_line(line: str, where: str, key: str) -> Mapping[str, Any]:
    """Return a JSONL line as an object."""
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{key}: {where} is not valid JSON ({error}).") from None
    if not isinstance(record, dict):
        raise UserError(f"{key}: {where}: expected a JSON object, got {type(record).__name__}.")
    return record


def field_of(row: Mapping[str, Any], name: str, key: str, where: str) -> Any:
    """Return a row's field; a dot leads into nested fields, and a list of chat messages gives the last user message.

    Raises:
        UserError: for a missing column, with the nearest name.
    """
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            columns = [str(c) for c in row]
            raise UserError(
                f"{key}: expected a column {name!r} in {where}, found {', '.join(columns) or 'none'}."
                f"{nearest(name, columns) if columns else ''}"
            )
        value = value[part]
    if isinstance(value, list) and value and all(isinstance(m, dict) and "content" in m for m in value):
        user_texts = [m["content"] for m in value if m.get("role") == "user"]
        return user_texts[-1] if user_texts else None
    return value
