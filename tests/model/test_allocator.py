"""The C library's allocator."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="glibc's setting")
def test_the_c_library_takes_what_it_is_told_about_freed_memory():
    """In a process of its own, since it cannot be undone; a threshold above glibc's largest would be refused."""
    program = "from rlrt.model.allocator import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
