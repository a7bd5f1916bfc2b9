"""Memory that is freed stays with the process, for the next tensor; on a CPU every step allocates the same again."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers, from malloc.h."""
LARGEST = 32 * 2**20
"""Bytes up to which memory is reused, the most that glibc takes. It would raise its limit to that by itself as a run goes on;
larger blocks are given back at once and leave no holes (``rlrt.model.forward.CHUNK_ELEMENTS``)."""
KEPT = 2**30
"""Bytes of free memory at the end of the heap that are not given back."""


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory rather than to return it: new pages cost a fault each (docs/LOG.md has the gain).

    Returns:
        whether it was told; False on another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
