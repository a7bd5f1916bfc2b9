"""Files of a folder that somebody else may have filled: one way to open them, and JSON as data; atomic writes.

Only a regular file of bounded size is opened. A link, a pipe, a device or a folder under a file's name is refused before it is
opened: reading a pipe may wait forever, reading a device may do something, and a link leads out of the folder.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rlrt.errors import UserError, first_line
from rlrt.records.secrets import without_known

log = logging.getLogger("rlrt")
LARGEST = 16_000_000
"""Bytes of the largest small file: a run's manifest has at most a megabyte of changes in the code."""
LARGEST_HEADER = 100_000_000
"""Bytes of the largest header of a safetensors file that the library safetensors reads."""
MOST_FILES = 100_000
"""Files and folders below one folder that is read as a whole: a model's or a data set's, not a whole disk."""
DEEPEST = 50
"""Levels of nesting in JSON; rlrt writes fewer than ten."""
DIGITS = 18
"""Digits of a whole number in JSON: one with more fits no 64 bits."""
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link, which would lead out of its folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What a path is that is no regular file."""
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape in JSON that may stand for half a character."""
LONG_NUMBER = re.compile(rf"\d{{{DIGITS + 1}}}")


class Unreadable(UserError):
    """A file that cannot be read as what it should be; the message names it."""


def opened(file: Path) -> BinaryIO:
    """Open a regular file for reading, as bytes; nothing else is opened.

    Raises:
        FileNotFoundError: if there is nothing under that name.
        Unreadable: for anything but a regular file, and for a file without permission.
    """
    try:
        refuse_irregular(file, os.lstat(file).st_mode)
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(file)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise error if isinstance(error, Unreadable) else Unreadable(f"{file} cannot be read ({reason}).") from None
    try:
        refuse_irregular(file, os.fstat(handle).st_mode)  # it may have been exchanged in between
    except Unreadable:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def refuse_irregular(file: Path, mode: int) -> None:
    """Refuse what is no regular file.

    Raises:
        Unreadable: saying what it is.
    """
    if not stat.S_ISREG(mode):
        raise Unreadable(f"{file} cannot be read: expected a file, found {KINDS.get(stat.S_IFMT(mode), 'none')}.")


def read_bytes(file: Path, most: int = LARGEST) -> bytes:
    """Read a regular file of at most ``most`` bytes.

    Raises:
        FileNotFoundError, Unreadable: as ``opened``; Unreadable also for a larger file.
    """
    with opened(file) as handle:
        size = os.fstat(handle.fileno()).st_size
        content = b"" if size > most else handle.read(most + 1)
    if max(size, len(content)) > most:
        raise Unreadable(f"{file} cannot be read: expected at most {most} bytes, found {max(size, len(content))}.")
    return content


def read_text(file: Path, most: int = LARGEST) -> str:
    """Read a small text file; errors as ``read_bytes``, and Unreadable for a text that is not UTF-8."""
    try:
        return read_bytes(file, most).decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable(f"{file} cannot be read: expected text in UTF-8.") from None


def is_file(file: Path) -> bool:
    """True for a regular file that is no link; False also where looking is not permitted."""
    try:
        return stat.S_ISREG(os.lstat(file).st_mode)
    except (OSError, ValueError):
        return False


def is_small_file(file: Path) -> bool:
    """True for a regular file that is no link, of at most ``LARGEST`` bytes."""
    return is_file(file) and os.lstat(file).st_size <= LARGEST


def size_of(file: Path) -> int:
    """Return a file's bytes; 0 if it is gone."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Replace a small JSON file atomically.

    Args:
        private: only the owner may read the file, from its first byte on.
    """
    replace_text(path, json.dumps(value, indent=1, default=str) + "\n", private)


def replace_text(path: Path, text: str, private: bool = False) -> None:
    """Replace a small text file atomically; if two processes write the same file, the last one wins completely."""
    replace_bytes(path, (text if private else without_known(text)).encode("utf-8", "backslashreplace"), private)


def replace_bytes(path: Path, content: bytes, private: bool = False) -> None:
    """Replace a file atomically; a link under its name is replaced, not followed.

    Raises:
        UserError: for a folder under its name.
        OSError: where nothing can be written.
    """
    work = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    rights = 0o600 if private else stat.S_IMODE(path.stat().st_mode) if is_file(path) else 0o666
    work.unlink(missing_ok=True)
    try:
        with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, rights), "wb") as file:
            file.write(content)
        work.replace(path)
    except IsADirectoryError:
        work.unlink(missing_ok=True)
        raise UserError(f"{path} is a folder, and rlrt writes a file there; remove it.") from None
    except OSError:
        work.unlink(missing_ok=True)
        raise


def own_folder(folder: Path) -> Path:
    """Create a folder inside a run's or a sweep's folder, to write into; return it.

    Raises:
        UserError: for a link, which would decide where the files go, and for what is no folder.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and rlrt writes only inside the folder itself; remove the link.")
    return made_folder(folder, parents=True)


def made_folder(folder: Path, parents: bool = False) -> Path:
    """Create a folder unless it is there; return it.

    Raises:
        UserError: for what is no folder.
    """
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is no folder, and rlrt writes files into it; remove it.") from None
    return folder


def tensors_of(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: dtype, shape and place of each tensor by name, and ``__metadata__``.

    Raises:
        Unreadable: for a file without such a header.
    """
    try:
        if not file.is_file():  # a pipe would wait forever
            raise ValueError("expected a file")
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"expected a header of at most {LARGEST_HEADER} bytes, found {length}")
            header = json.loads(handle.read(length))
        shapes = [mapping(entry).get("shape") for name, entry in mapping(header).items() if name != "__metadata__"]
        if not isinstance(header, dict) or not all(isinstance(s, list) and s == [*map(whole, s)] for s in shapes):
            raise ValueError("its header lists no tensors")
        return header
    except (OSError, RecursionError, ValueError) as error:
        raise Unreadable(f"{file} cannot be read as safetensors ({first_line(error)}).") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object; {} if the file is missing, unreadable or not an object."""
    try:
        return json_object(path)
    except Unreadable:
        return {}


def json_object(path: Path) -> dict[str, Any]:
    """Read a small JSON object; {} if there is no file.

    Raises:
        Unreadable: for anything else than an object in a regular file of at most ``LARGEST`` bytes.
    """
    try:
        value = parsed_json(read_text(path))
    except FileNotFoundError:
        return {}
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(f"{path} cannot be read as JSON ({first_line(error)}).") from None
    if not isinstance(value, dict):
        raise Unreadable(f"{path} cannot be read: expected a JSON object, found a {type(value).__name__}.")
    return value


def why_unreadable(path: Path) -> str:
    """Return the sentence for a file that holds no JSON object; "" for one that does, or that is not there."""
    try:
        json_object(path)
    except Unreadable as error:
        return str(error)
    return ""


def parsed_json(text: str) -> Any:
    """Parse JSON that somebody else may have written.

    Half characters become U+FFFD, since no file and no terminal takes them.

    Raises:
        ValueError: for other text, for more than ``DEEPEST`` levels, and for whole numbers of more than ``DIGITS`` digits.
    """
    try:
        value = json.loads(text, parse_int=short_int if LONG_NUMBER.search(text) else None)
    except RecursionError:
        raise ValueError(f"expected at most {DEEPEST} levels of nesting") from None
    if text.count("[") + text.count("{") > DEEPEST:
        refuse_deep(value)
    return whole_characters(value) if HALF.search(text) else value


def short_int(digits: str) -> int:
    """Parse a whole number of at most ``DIGITS`` digits; raise ValueError for a longer one."""
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"expected whole numbers of at most {DIGITS} digits, found one of {len(digits)}")
    return int(digits)


def refuse_deep(value: Any) -> None:
    """Raise ValueError if a value has more than ``DEEPEST`` levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in inside(outer) if isinstance(inner, (dict, list))]
        if not level:
            return
    raise ValueError(f"expected at most {DEEPEST} levels of nesting")


def inside(value: Any) -> Any:
    """Return the values directly inside a dict or list; nothing for any other value."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def whole_characters(value: Any) -> Any:
    """Return plain values with U+FFFD in place of half characters in their texts."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {whole_characters(k): whole_characters(v) for k, v in value.items()}
    return [whole_characters(v) for v in value] if isinstance(value, list) else value


def mapping(value: Any) -> dict[str, Any]:
    """Return the value if it is a mapping, else {} (for fields of untrusted JSON)."""
    return value if isinstance(value, dict) else {}


def whole(value: Any) -> int:
    """Return the value if it is a whole number, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


@contextmanager
def or_logged(file: Path) -> Iterator[None]:
    """Log an OSError of the block instead of raising it: the error being handled already is the more useful one."""
    try:
        yield
    except OSError as error:
        log.error("%s cannot be written (%s)", file, error.strerror)


def folders_with(folder: Path, name: str) -> list[Path]:
    """List the folders inside a folder that have something under a name, a link that leads nowhere included."""
    try:
        return [p for p in folder.iterdir() if os.path.lexists(p / name)]
    except OSError:
        return []


def closed_folders(folder: Path) -> list[Path]:
    """List the folders inside a folder that this user may not enter and read: what they hold cannot be known."""
    try:
        inner = [p for p in folder.iterdir() if p.is_dir()]
    except OSError:
        return []
    return [p for p in inner if not os.access(p, os.R_OK | os.X_OK)]


def walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder, however deep; links are not followed, and what may not be looked at is passed over."""
    folders = [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                found = list(entries)
        except OSError:
            continue
        for entry in found:
            yield entry
            if stat.S_ISDIR(mode_of(entry, follow=False)):
                folders.append(entry.path)


def mode_of(entry: os.DirEntry[str], follow: bool) -> int:
    """Return the mode of what a folder holds, of what a link names if ``follow``; 0 if it may not be looked at."""
    try:
        return entry.stat(follow_symlinks=follow).st_mode
    except OSError:
        return 0


def named_below(folder: Path, *names: str) -> list[Path]:
    """List what has one of some names below a folder, sorted."""
    return sorted(Path(entry.path) for entry in walk(folder) if entry.name in names)


def files_below(folder: Path, most: int = MOST_FILES) -> list[Path]:
    """List the regular files below a folder, sorted; those that links name are counted too, as the hub's cache has them.

    Raises:
        Unreadable: if the folder holds more than ``most`` files and folders.
    """
    found = list(itertools.islice(walk(folder), most + 1))
    if len(found) > most:
        raise Unreadable(f"{folder} cannot be read: expected at most {most} files and folders below it, found more.")
    return sorted(Path(entry.path) for entry in found if stat.S_ISREG(mode_of(entry, follow=True)))


def resolved(path: Path) -> Path:
    """Return an absolute path without links; unlike ``Path.resolve`` also where a link leads to itself."""
    return Path(os.path.realpath(path))


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    whole = resolved(folder)
    return next(p for p in (whole, *whole.parents) if p.exists())


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that holds a folder or would hold it."""
    return shutil.disk_usage(nearest_existing(folder)).free
