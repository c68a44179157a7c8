"""Holds: while a process writes a file, the garbage collector leaves it alone, however old it looks and whatever grace was asked for.

A hold is a shared lock (flock) on the open file. The kernel drops it with the last descriptor, so also when the process is killed: what
nobody holds is left over. Where the file system has no locks a hold is nothing, and only the age of a file says that nobody writes it.
"""

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
"""Beginning of the names of files and folders that are being written."""
_HELD = {errno.EWOULDBLOCK, errno.EACCES}
"""What asking for a lock says that somebody else has; the second one over NFS."""


def hold(descriptor: int) -> None:
    """Keep an open file or folder from the collector until its descriptor is closed."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def is_held(path: Path) -> bool:
    """Whether somebody writes the file, or in the folder; False if nothing is there."""
    descriptor = _locked(path)
    if descriptor is None:
        return path.exists()
    os.close(descriptor)
    return False


def remove_unheld(path: Path) -> bool:
    """Remove a file, or a folder with all that is in it, that nobody holds; returns whether it is gone.

    It goes while its lock is ours: a writer that has created it this moment, and waits for its hold, finds it gone then and begins another.
    """
    descriptor = _locked(path)
    if descriptor is None:
        return not path.exists()
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True


def _locked(path: Path) -> int | None:
    """A descriptor with the only lock on the file or folder; None if somebody holds it, it is not ours to remove, or nothing is there."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS gives such a lock to who may write only
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            os.close(descriptor)
            return None
    return descriptor
