"""Files that a manifest pins: the manifest says their size and SHA-256, and whoever uses one of them compares first.

Invariant: what ``read_pinned`` returns, and the file at the path that ``verify_pinned`` returns, had the bytes that the manifest promised.
Costs one reading of the file; ``verify_pinned`` takes constant memory. Files of a version never change, so one check before the use is enough.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pipelines.storage.durable import sha256_file
from schemas.errors import ShardCorrupt
from schemas.manifest import FileEntry

_verified: set[tuple[str, str, int, int]] = set()
"""Files that ``verify_once`` has read: path, SHA-256, inode and time of the last change."""


def check_present(root: Path, entries: Iterable[FileEntry]) -> None:
    """Raise ShardCorrupt unless all the files are there, with their sizes: to be called before a manifest that lists them is published."""
    for path, entry in ((root / entry.path, entry) for entry in entries):
        if not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise ShardCorrupt(
                f"{path} is gone, or no longer has its {entry.size_bytes:,} bytes, so no manifest may list it. Nothing was published. "
                "Find out what else removes files under the root, then start again"
            )


def verify_pinned(root: Path, entry: FileEntry) -> Path:
    """Path of the file, once its bytes were compared with the entry. Raises ShardCorrupt."""
    path = check_size(root, entry)
    _check(path, entry, sha256_file(path))
    return path


def verify_once(root: Path, entry: FileEntry) -> Path:
    """As ``verify_pinned``, but a file that this process has verified is not read again while inode and time of change stay the same."""
    path = check_size(root, entry)
    found = path.stat()
    mark = (str(path), entry.sha256, found.st_ino, found.st_mtime_ns)
    if mark not in _verified:
        verify_pinned(root, entry)
        _verified.add(mark)
    return path


def read_pinned(root: Path, entry: FileEntry) -> bytes:
    """Bytes of the file; it is read once, so nobody can change it between the check and the use. Raises ShardCorrupt."""
    path = check_size(root, entry)
    data = path.read_bytes()
    _check(path, entry, hashlib.sha256(data).hexdigest())
    return data


def check_size(root: Path, entry: FileEntry) -> Path:
    """Path of the file, once its size was compared: for files that are too large to be read as a whole. Raises ShardCorrupt."""
    path = root / entry.path
    if not path.is_file():
        raise ShardCorrupt(f"{path} is missing, but a manifest lists it ({entry.size_bytes:,} bytes); restore it from a copy")
    if path.stat().st_size != entry.size_bytes:
        raise ShardCorrupt(f"{path} has {path.stat().st_size:,} bytes, its manifest says {entry.size_bytes:,}; restore it from a copy")
    return path


def _check(path: Path, entry: FileEntry, sha256: str) -> None:
    if sha256 != entry.sha256:
        raise ShardCorrupt(f"{path} has SHA-256 {sha256}, its manifest says {entry.sha256}: these are other bytes; restore it from a copy")
