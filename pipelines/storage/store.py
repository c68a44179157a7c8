"""What lies under a root, in a folder or on an object store (storage/objects.py), of which a mirror is on this host (storage/mirror.py).

Code that reads what is under a root by its path calls these functions; what writes is in storage/durable.py. If the root is a folder, each of
them is the one call to the file system that it looks like.

Invariant: ``is_there``, ``names``, ``read_bytes`` and ``modified_at`` say what the store says now. ``local`` gives a whole file, but of one that
is written again under the same name it may be an older one: it is for files that never change, and whose bytes the caller compares with a
manifest or with their name. What is removed is gone from the store first.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from pipelines.storage import holds
from pipelines.storage.mirror import Mirror, drop_copy, has_copy, mirror_of, new_copy
from pipelines.storage.objects import in_bounded_threads
from schemas.errors import SettingsError

_ANY = re.compile(".*", re.DOTALL)


def is_local(root: Path) -> bool:
    """Whether the root is a folder."""
    return mirror_of(root) is None


def is_there(path: Path) -> bool:
    """Whether a file is at the path."""
    mirror = mirror_of(path)
    return path.is_file() if mirror is None else mirror.objects.stat(mirror.key(path)) is not None


def is_folder(path: Path) -> bool:
    """Whether a folder is at the path; on an object store, whether it has something in it."""
    return path.is_dir() if mirror_of(path) is None else bool(names(path))


def size_of(path: Path) -> int:
    """Bytes of a file. Raises FileNotFoundError."""
    mirror = mirror_of(path)
    if mirror is None:
        return path.stat().st_size
    found = mirror.objects.stat(mirror.key(path))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "there is no object", f"{mirror.objects.url}/{mirror.key(path)}")
    return found.size_bytes


def sizes_of(paths: Iterable[Path]) -> list[int | None]:
    """Bytes of each file; None if it is not there."""
    wanted = list(paths)
    if wanted and mirror_of(wanted[0]) is not None:
        return list(in_bounded_threads(_size_or_none, wanted))
    return list(map(_size_or_none, wanted))


def _size_or_none(path: Path) -> int | None:
    try:
        return size_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def names(folder: Path, after: str | None = None) -> list[str]:
    """Names of the files and folders in a folder, in no order; none if it is not there. ``after``: perhaps only those of files behind this one."""
    mirror = mirror_of(folder)
    if mirror is None:
        return os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 (half the time of iterdir for 100,000 manifests)
    if after is not None:
        below = len(mirror.key(folder)) + 1
        found_names = [found.key[below:] for found in mirror.objects.listed(mirror.key(folder), after=mirror.key(folder / after))]
        return [name for name in found_names if "/" not in name]
    files, folders = mirror.objects.directly_in(mirror.key(folder))
    return [found.key.rpartition("/")[2] for found in files] + folders


def file_names(folder: Path, pattern: re.Pattern[str] = _ANY) -> list[str]:
    """Names of the files in a folder that the whole pattern matches, in no order; none if the folder is not there."""
    mirror = mirror_of(folder)
    if mirror is not None:
        found = [entry.key.rpartition("/")[2] for entry in mirror.objects.directly_in(mirror.key(folder))[0]]
        return [name for name in found if pattern.fullmatch(name)]
    return [entry.name for entry in folder.iterdir() if pattern.fullmatch(entry.name) and entry.is_file()] if folder.is_dir() else []


def read_bytes(path: Path) -> bytes:
    """Bytes of a file as they are now. Raises FileNotFoundError."""
    mirror = mirror_of(path)
    return path.read_bytes() if mirror is None else mirror.objects.get(mirror.key(path))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that only informs: in a folder it is neither flushed nor whole at every moment."""
    mirror = mirror_of(path)
    if mirror is not None:
        mirror.objects.put(mirror.key(path), data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def local(path: Path) -> Path:
    """The path, with the file at it on this host. Raises FileNotFoundError if it is nowhere."""
    mirror = mirror_of(path)
    if mirror is not None and not has_copy(path):
        _fetch(mirror, path)
    return path


def all_local(paths: Iterable[Path]) -> list[Path]:
    """``local`` for several files, some of them fetched at once."""
    wanted = list(paths)
    if wanted and mirror_of(wanted[0]) is not None:
        return list(in_bounded_threads(local, wanted))
    return wanted


def fetched(path: Path) -> Path:
    """As ``local``, but what this host had of it is fetched again: the file has the bytes that the store has."""
    mirror = mirror_of(path)
    if mirror is not None:
        _fetch(mirror, path)
    return path


def refetch(path: Path) -> bool:
    """Fetch a file again whose copy on this host is not what it should be; False if there is nothing to fetch from."""
    if mirror_of(path) is None:
        return False
    try:
        fetched(path)
    except FileNotFoundError:
        drop_copy(path)
        return False
    return True


def _fetch(mirror: Mirror, path: Path) -> None:
    with new_copy(path) as temporary, temporary.open("r+b") as file:
        mirror.objects.fetch(mirror.key(path), file)


def local_folder(folder: Path) -> Path:
    """The folder, with all files that are directly in it on this host. For folders whose files never change."""
    if mirror_of(folder) is not None:
        all_local(folder / name for name in file_names(folder))
    return folder


def missing(paths: Iterable[Path]) -> list[Path]:
    """Those of the files that are nowhere: a copy on this host is enough. On an object store each folder is listed once."""
    absent = [path for path in paths if not path.is_file()]
    if not absent or mirror_of(absent[0]) is None:
        return absent
    there = {folder: set(file_names(folder)) for folder in {path.parent for path in absent}}
    return [path for path in absent if path.name not in there[path.parent]]


def modified_at(path: Path) -> float:
    """When the file, or the last one in the folder, was written to, in seconds since 1970; infinity if it is not there."""
    mirror = mirror_of(path)
    try:
        if mirror is None:
            return max(entry.stat().st_mtime for entry in (path, *path.rglob("*")))
    except FileNotFoundError:  # a temporary file that its writer has renamed meanwhile
        return float("inf")
    found = mirror.objects.stat(mirror.key(path))
    below = [found] if found is not None else mirror.objects.listed(mirror.key(path))
    return max((entry.modified_at for entry in below), default=float("inf"))


def remove(path: Path) -> None:
    """Remove a file; harmless if it is not there."""
    mirror = mirror_of(path)
    if mirror is None:
        path.unlink(missing_ok=True)
        return
    mirror.objects.delete(mirror.key(path))
    drop_copy(path)


def is_held(path: Path) -> bool:
    """Whether somebody writes the file, or in the folder. An object store holds nothing that is still being written."""
    return mirror_of(path) is None and holds.is_held(path)


def remove_unheld(path: Path) -> bool:
    """Remove a file, or a folder with all that is in it, that nobody holds; returns whether it is gone."""
    if mirror_of(path) is None:
        return holds.remove_unheld(path)
    remove(path)
    return True


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; harmless if it is not there."""
    mirror = mirror_of(folder)
    if mirror is not None:
        for _ in in_bounded_threads(mirror.objects.delete, [found.key for found in mirror.objects.listed(mirror.key(folder))]):
            pass
    shutil.rmtree(folder, ignore_errors=True)


def needs_folder(root: Path, what: str) -> None:
    """Refuse what does not work on an object store yet. Raises SettingsError."""
    if (mirror := mirror_of(root)) is not None:
        raise SettingsError(f"{what} needs a folder as root, and the root is {mirror.objects.url}: name a folder with --root")
