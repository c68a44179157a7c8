"""Memory that was freed goes back to the machine.

The C library keeps freed memory for later, in pieces that the next block rarely fits into, and one store of them per thread: a process
that takes in a long backlog would grow by half in the first gigabyte, though it holds no more. Cost: about a millisecond per call.
Source: https://man7.org/linux/man-pages/man3/malloc_trim.3.html (glibc; other C libraries have no such call and need none here).
"""

import ctypes
import sys
from functools import cache
from typing import Any

import pyarrow as pa


def release() -> None:
    """Give back what is free, Arrow's pool included."""
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
