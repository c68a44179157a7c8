"""Returning freed memory to the operating system.

The C library keeps freed memory for later, in pieces that the next block rarely fits into, and one store of them per thread: a process
that takes in a long backlog would grow by half in the first gigabyte, though it holds no more. And the first large block that is freed teaches it
to take blocks of that size, too, from those stores: after one compaction of the duplicate index an ingest held 200 MB more for good (measured;
none with LARGE_BYTES fixed). Cost: about a millisecond per call.
Source: https://man7.org/linux/man-pages/man3/malloc_trim.3.html, mallopt.3.html (glibc; other C libraries have no such calls and need none here).
"""

import ctypes
import sys
from functools import cache
from typing import Any

import pyarrow as pa

M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
LARGE_BYTES = 2**20
"""Blocks of this size have pages of their own, which go back when they are freed."""


def release() -> None:
    """Give back what is free, Arrow's pool included; from the first call on large blocks go back by themselves."""
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """The C library's function where it has one; fixes what counts as large on the way."""
    library = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(library, "malloc_trim"):
        return None
    library.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    return library.malloc_trim


def few_arenas(count: int = 2) -> None:
    """Let all threads share ``count`` stores of freed memory from now on, instead of eight per core; large blocks go back by themselves.

    For a process whose few busy threads release the interpreter's lock while they compute, so they hardly ever wait for each other here.
    """
    if _malloc_trim() is not None:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, count)
