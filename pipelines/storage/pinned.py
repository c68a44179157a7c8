"""Files that a manifest pins: the manifest says their size and SHA-256, and whoever uses one of them compares first.

Invariant: what ``read_pinned`` returns, and the file at the path that ``verify_pinned`` returns, had the bytes that the manifest promised.
Costs one reading of the file; ``verify_pinned`` takes constant memory. Files of a version never change, so one check before the use is enough.
On an object store a file is fetched when it is first used on a host; a copy there that is not what the manifest says is fetched again.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pipelines.storage.durable import sha256_file
from pipelines.storage.store import local, refetch, sizes_of
from schemas.errors import ShardCorrupt
from schemas.manifest import FileEntry

_verified: set[tuple[str, str, int, int]] = set()
"""Files that ``verify_once`` has read: path, SHA-256, inode and time of the last change."""


def check_present(root: Path, entries: Iterable[FileEntry]) -> None:
    """Raise ShardCorrupt unless all the files are there, with their sizes: to be called before a manifest that lists them is published."""
    listed = list(entries)
    sizes = sizes_of(root / entry.path for entry in listed)
    for entry, size in zip(listed, sizes, strict=True):
        path = root / entry.path
        if size != entry.size_bytes:
            raise ShardCorrupt(
                f"{path} is gone, or no longer has its {entry.size_bytes:,} bytes, so no manifest may list it. Nothing was published. "
                "Find out what else removes files under the root, then start again"
            )


def verify_pinned(root: Path, entry: FileEntry) -> Path:
    """Path of the file, once its bytes were compared with the entry. Raises ShardCorrupt."""
    path = check_size(root, entry)
    if (found := sha256_file(path)) != entry.sha256 and refetch(path):
        found = sha256_file(path)
    _check(path, entry, found)
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
    if (found := hashlib.sha256(data).hexdigest()) != entry.sha256 and refetch(path):
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
    _check(path, entry, found)
    return data


def check_size(root: Path, entry: FileEntry) -> Path:
    """Path of the file, once its size was compared: for files that are too large to be read as a whole. Raises ShardCorrupt."""
    try:
        path = local(root / entry.path)
        if path.stat().st_size != entry.size_bytes:
            refetch(path)
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ShardCorrupt(f"{root / entry.path} is missing, but a manifest lists it ({entry.size_bytes:,} bytes); restore it from a copy") from error
    if size != entry.size_bytes:
        raise ShardCorrupt(f"{path} has {size:,} bytes, its manifest says {entry.size_bytes:,}; restore it from a copy")
    return path


def _check(path: Path, entry: FileEntry, sha256: str) -> None:
    if sha256 != entry.sha256:
        raise ShardCorrupt(f"{path} has SHA-256 {sha256}, its manifest says {entry.sha256}: these are other bytes; restore it from a copy")
