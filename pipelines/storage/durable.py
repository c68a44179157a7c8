"""Files that are either absent or whole, also after a power cut.

A file is written under a temporary name in its own folder, flushed to disk, renamed, and the folder is flushed. The temporary
name starts with ``.tmp-`` so that readers and the garbage collector recognise what a crash left behind.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from schemas.manifest import FileEntry

TEMPORARY_PREFIX = ".tmp-"


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (names) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(6)}"


@contextmanager
def durable_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file for writing and mapping that appears at ``path`` when the block ends without an error, replacing what was there."""
    temporary = _temporary(path)
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_durably(path: Path, data: bytes) -> None:
    """Write ``data`` at ``path``, replacing what was there; readers see the old bytes or the new ones."""
    with durable_file(path) as file:
        file.write(data)


def create_durably(path: Path, data: bytes) -> None:
    """Write ``data`` at ``path`` if nothing is there; raises FileExistsError otherwise.

    The link is the moment of truth: the kernel lets exactly one of several writers create the name.
    """
    temporary = _temporary(path)
    try:
        _write_synced(temporary, data)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; reads it once, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(root: Path, path: Path, rows: int) -> FileEntry:
    """Entry of a finished file, for a manifest."""
    return FileEntry(path=path.relative_to(root).as_posix(), rows=rows, size_bytes=path.stat().st_size, sha256=sha256_file(path))
