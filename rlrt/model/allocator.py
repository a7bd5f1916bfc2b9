"""Settings of glibc's allocator that keep freed memory in the process: on a CPU every step allocates the same tensors again."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's options, from malloc.h."""
REUSED_BYTES = 32 * 2**20
"""Largest block, in bytes, that glibc reuses; glibc accepts no more, and by itself raises its limit to this in the course of
a run. Larger blocks are returned to the system at once and leave no holes (``rlrt.model.forward.CHUNK_ELEMENTS``)."""
TRIM_BYTES = 2**30
"""Bytes of free memory at the end of the heap that glibc does not return to the system."""


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed memory rather than to return it: new pages cost a fault each (docs/LOG.md has the gain).

    Returns:
        True if glibc accepted both options; False with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, REUSED_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
