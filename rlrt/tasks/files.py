"""The files of a table: one file, a folder's, or those of a data set on the hub; compressed or not."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from rlrt.errors import UserError, first_line
from rlrt.paths import local_folder
from rlrt.records.files import files_below

KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".feather")
"""Endings of tables."""
PACKED = (".gz", ".bz2", ".zst", ".lz4", ".xz")
"""Endings of compressed files, which may follow those of tables."""
PAPERS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json")
"""Files that the hub and the library datasets store beside a table. They describe it and hold no rows."""
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ\x00": "xz",
}
"""First bytes of compressed files, and the format's name in pyarrow."""
NO_TABLES = {
    b"PK\x03\x04": "a zip archive or a workbook; unpack it, or save the sheet as CSV",
    b"version https://git-lfs": "a pointer of Git LFS, not the data; fetch the data with: git lfs pull",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"\x89HDF": "an HDF5 file; write the table as parquet",
    b"\x93NUMPY": "an array of numpy; write the table as parquet",
    b"%PDF": "a PDF document",
    b"<": "a page of HTML or XML, perhaps an error page of the server; download the file again",
}
"""First bytes of files that hold no table, what they are, and what to do."""
TAR = (257, b"ustar")
"""Place and text of a tar archive's mark."""
LAYERS = 3
"""A file may be compressed this many times."""


def table_files(path: str, pattern: str, revision: str | None, where: str) -> list[Path]:
    """Return the files at a path: the file itself, a folder's matching files, or those of a data set on the hub.

    Hidden files and the hub's papers are no tables, unless the pattern is their name. Of several patterns (``a|b``, the
    layouts in which a data set is published) the first that matches a file counts alone.

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
    names = {p: p.relative_to(folder) for p in files_below(folder)}
    tables = {p: str(n) for p, n in names.items() if str(n) in pattern.split("|") or is_table(n)}
    found = ([p for p, name in tables.items() if fnmatch.fnmatch(name, one)] for one in pattern.split("|"))
    matching = next((files for files in found if files), [])
    if not matching:
        there = list(tables.values()) if local is not None else names_on_hub(path, revision)
        raise UserError(
            f"{where.removesuffix('path')}files: expected files of {path} that match {pattern!r}, found none among "
            f"{', '.join(there[:8]) or 'no table at all'}."
        )
    return matching


def is_table(name: Path) -> bool:
    """True if a file inside a folder may be a table, by its name."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return ending_of(name) in KINDS and not hidden and name.name not in PAPERS


def ending_of(file: Path) -> str:
    """Return the ending that names a file's format, in small letters, without that of a compressed file."""
    suffixes = [s.lower() for s in file.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


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
        return Path(snapshot_download(path, repo_type="dataset", revision=revision, allow_patterns=pattern.split("|")))
    except Exception as error:  # the hub's and the http library's own types
        raise UserError(
            f"{where}: the data set {path} could not be downloaded from the hub ({first_line(error)}); get it elsewhere and "
            f"give its file or folder as {where}=/path/to/it."
        ) from None


def names_on_hub(path: str, revision: str | None) -> list[str]:
    """Return the names of the tables of a data set on the hub, also of those that no pattern matches; [] if it does not say."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(path, repo_type="dataset", revision=revision)
    except Exception:  # the refusal that they belong to says enough without them
        return []
    return [name for name in names if is_table(Path(name))]


def unpacked(content: bytes, file: Path, key: str) -> bytes:
    """Return a file's content without its compression. The first bytes say what it is, not the name.

    Raises:
        UserError: for content that is no table, naming what it is.
    """
    for _ in range(LAYERS):
        packing = next((name for magic, name in MAGIC.items() if content.startswith(magic)), None)
        if packing is None:
            break
        content = decompressed(content, packing)
    start, mark = TAR
    if content[start : start + len(mark)] == mark:
        raise UserError(f"{key}: {file} is a tar archive; unpack it and give the folder as {key}.")
    head = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what in NO_TABLES.items():
        if head.startswith(magic):
            raise UserError(f"{key}: expected a table of JSON lines, JSON, parquet or CSV, but {file} is {what}.")
    return content


def decompressed(content: bytes, packing: str) -> bytes:
    """Return what compressed bytes stand for; raises what the library raises."""
    if packing == "xz":
        import lzma

        return lzma.decompress(content)
    import pyarrow

    with pyarrow.input_stream(pyarrow.BufferReader(content), compression=packing) as stream:
        return bytes(stream.read())
