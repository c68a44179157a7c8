"""A file that one process at a time holds, and in which it says how others reach it.

The kernel drops the lock with the process, however that ends, so what a dead one wrote is never taken for the word of a living one.
A reader has to take the lock for a moment to see whether it is free; whoever wants to hold it tries again for TRY_AGAIN_S, which is far longer.
"""

import fcntl
import os
import time
from pathlib import Path

TRY_AGAIN_S = 0.2
MAX_NOTE_BYTES = 4_096


def take(path: Path) -> int | None:
    """Hold the file, made if it is missing, until the returned descriptor is closed; None if another process holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + TRY_AGAIN_S
    while not _locked(handle, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(handle)
            return None
        time.sleep(TRY_AGAIN_S / 100)
    os.ftruncate(handle, 0)
    return handle


def write_note(handle: int, note: str) -> None:
    """Say something in a file that this process holds; replaces what it said before."""
    data = note.encode()
    os.pwrite(handle, data, 0)
    os.ftruncate(handle, len(data))  # last: who reads meanwhile may see an old tail, but never an empty file


def note_of_holder(path: Path) -> str | None:
    """What the process that holds the file wrote into it; None if nobody holds it or it is not there."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _locked(handle, fcntl.LOCK_SH):
            return None
        return os.pread(handle, MAX_NOTE_BYTES, 0).decode(errors="replace")
    finally:
        os.close(handle)


def _locked(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
