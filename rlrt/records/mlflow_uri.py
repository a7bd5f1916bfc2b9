"""Where an MLflow store is: the tracking URIs that are taken, and the file of a SQLite one. MLflow is not imported here."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from rlrt.errors import UserError
from rlrt.records.files import nearest_existing, resolved
from rlrt.records.secrets import without_password

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
LOCKED_S = 60
"""Seconds that a process waits for a SQLite store which another process is writing."""


def check_uri(uri: str) -> None:
    """Refuse a tracking URI with a scheme that MLflow does not accept, before the run starts.

    MLflow 3.17 itself refuses its old file store.

    Raises:
        UserError: naming the URI (without its password) and the accepted schemes.
    """
    scheme = uri.split("://")[0].split("+")[0] if "://" in uri else ""
    if uri.rstrip("/") == "sqlite:":
        raise UserError(f"tracking.uri: expected a file after sqlite:///, got {without_password(uri)!r}.")
    try:
        _ = urlsplit(uri).port
    except ValueError:  # the ValueError's message may contain the password
        raise UserError(f"tracking.uri: expected HOST:PORT after http://, got {without_password(uri)!r}.") from None
    if scheme in ("http", "https") and (not urlsplit(uri).hostname or re.search(r"\s", uri)):
        raise UserError(f"tracking.uri: expected HOST:PORT after {scheme}://, got {without_password(uri)!r}.")
    if uri.startswith("sqlite:///"):
        file = sqlite_file(uri)
        if file.is_dir() or not nearest_existing(file.parent).is_dir():
            raise UserError(
                f"tracking.uri: expected a file that can be in {file.parent}, got {without_password(uri)!r}."
            )
    if scheme not in SCHEMES:
        raise UserError(
            f"tracking.uri: expected sqlite:///FILE, http(s)://HOST or null, got {without_password(uri)!r}, a scheme that "
            "MLflow does not accept."
        )


def absolute(uri: str) -> str:
    """Make the path of a SQLite URI absolute, so that the printed command to open MLflow works from any folder."""
    match = re.fullmatch(r"sqlite:///(?!/)(.+)", uri)
    if match is None:
        return uri
    return f"sqlite:///{os.path.normpath(f'{quoted(str(Path.cwd()))}/{match[1]}')}"


def quoted(path: str) -> str:
    """Return a path as it stands in a URI."""
    return path.translate({ord(sign): quote(sign) for sign in "%?#"})


def sqlite_file(uri: str) -> Path:
    """Return the file of a SQLite URI, which may be relative."""
    return Path(unquote(absolute(uri).removeprefix("sqlite:///").split("?")[0]))


def is_store(file: Path) -> bool:
    """True if a file is a SQLite store of MLflow; it is opened for reading alone."""
    if not file.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(resolved(file)))}?mode=ro", uri=True)) as store:
            query = "SELECT count(*) FROM sqlite_master WHERE name IN ('alembic_version', 'experiments', 'runs')"
            return bool(store.execute(query).fetchone()[0] == 3)
    except sqlite3.Error:
        return False


def patient(uri: str) -> str:
    """Add a lock timeout to a SQLite URI: by default sqlite3 gives up after 5 seconds, and a sweep has many writers."""
    return f"{uri}?timeout={LOCKED_S}" if uri.startswith("sqlite:") and "?" not in uri else uri
