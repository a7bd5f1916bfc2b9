"""A folder that takes nothing more: the disk is full, it was removed, or a right was taken away: one sentence for each."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlrt.errors import DiskFull, FolderLost, FolderRemoved

FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
BROKEN = (errno.EIO, errno.ESTALE, errno.ENXIO)
"""Numbers of errors: the disk is full, the folder is not there, it may not be written, the disk does not work."""


def number_of(error: BaseException) -> int | None:
    """Return the number of an operating system's error; libraries in Rust (safetensors) say it only in their message."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def is_full_disk(error: BaseException) -> bool:
    """True if an error says that the disk takes no more bytes."""
    return number_of(error) in FULL


def loss(error: BaseException, folder: Path, more: str = "") -> FolderLost | None:
    """Return the error for the user if a folder takes nothing more; None for every other error.

    Args:
        error: as it was caught.
        folder: of a run, an evaluation or a sweep.
        more: what is safe, as a part of the sentence for a full disk.
    """
    number = number_of(error)
    if number in FULL:
        return DiskFull(f"{folder}: the disk is full; {more}free some space and give the same command again.")
    if number in GONE and not folder.is_dir():
        return removed(folder)
    if number in DENIED and (not writable(folder) or below(error, folder)):
        return denied(folder, os.strerror(number or 0))
    if number in BROKEN and below(error, folder):
        return FolderLost(
            f"{folder}: the disk does not work ({os.strerror(number or 0)}); mend it, and give the same command again."
        )
    return None


def removed(folder: Path) -> FolderRemoved:
    """Return the error for a folder that is not there any more."""
    return FolderRemoved(f"{folder} was removed while it was in use; the same command begins it anew.")


def denied(folder: Path, why: str) -> FolderLost:
    """Return the error for a folder that may not be written any more."""
    return FolderLost(f"{folder} cannot be written any more ({why}); allow it, and give the same command again.")


def writable(folder: Path) -> bool:
    """True if this process may make files in a folder."""
    return os.access(folder, os.W_OK | os.X_OK)


def below(error: BaseException, folder: Path) -> bool:
    """True if an error is about a file of a folder."""
    name = getattr(error, "filename", None)
    return isinstance(name, (str, os.PathLike)) and folder.absolute() in Path(name).absolute().parents


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Raise one sentence instead of an error of the block that means that a folder takes nothing more.

    Raises:
        FolderLost: instead of that error.
    """
    try:
        yield
    except FolderLost:
        raise
    except Exception as error:
        lost = loss(error, folder)
        if lost is None:
            raise
        raise lost from None
