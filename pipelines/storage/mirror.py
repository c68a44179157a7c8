"""The local folder that stands for a root on an object store: a bounded cache of whole files, and the paths by which everything is named.

``mirror_folder("s3://bucket/prefix", cache)`` is ``<cache>/headrace-mirrors/s3%3A%2F%2Fbucket%2Fprefix``: the path says which store it stands for,
so a path that another process or host gets finds the store by itself. A path below it is the object of the same relative name. The store is the
truth. A file of the folder is one of two things:
- a copy, which nobody may write to: the file is whole, it has the bytes that its object had when it was fetched or written, and it may go at any
  time; what is mapped stays valid until it is unmapped. Who reads one compares its bytes with a manifest, or knows that they never change;
- a file that only this host needs (locks, marks, temporary files): no object belongs to it.

Copies that were not used for SPARED_S go, the least recently used first, when all mirrors of the cache hold more than the limit. Only the owner
may read the cache: it holds documents. Cost: one look at a path (0.2 us) where the root is a folder.
"""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

from pipelines.storage.holds import TEMPORARY_PREFIX, hold, remove_unheld
from pipelines.storage.objects import Objects

MIRRORS = "headrace-mirrors"
HOST_FOLDERS = "headrace-hosts"
_MARK = f"/{MIRRORS}/"
_PATH = re.compile(rf"/[^\s'\"()]*{_MARK}([^/\s,;:'\"()]+)")
SPARED_S = 60.0
"""Copies that were used in so short a time stay, whatever the limit: a process may be about to open them."""
LIMIT_VARIABLE = "HEADRACE_STORAGE__CACHE_BYTES"
"""The setting storage.cache_bytes, as the processes of a command get it."""
DEFAULT_CACHE_BYTES = 20 * 2**30
MAX_NAME = 40
"""Characters of a root's short name."""
LOOK_EVERY = 16
"""A process checks the size of the cache when it has added 1/LOOK_EVERY of the limit, and at its first copy if none has checked for LOOK_AFTER_S."""
LOOK_AFTER_S = 600.0
_COPY_MODE = 0o400
_added = -1
"""Bytes that this process has added since the cache was looked at; negative before its first copy."""


@dataclass(frozen=True)
class Mirror:
    """A root on an object store, as this host sees it."""

    root: Path
    objects: Objects

    def key(self, path: Path) -> str:
        """Name of the object that a path stands for."""
        return path.relative_to(self.root).as_posix() if path != self.root else ""


def mirror_folder(url: str, cache_folder: Path) -> Path:
    """The folder that stands for the URL; it need not exist yet."""
    return cache_folder / MIRRORS / quote(url.rstrip("/"), safe="")


def root_folder(root: str, cache_folder: str = "") -> Path:
    """The folder that stands for a root: itself, or the mirror of a URL. ``cache_folder``: the setting storage.cache."""
    if "://" not in root:
        return Path(root).absolute()
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "headrace")
    return mirror_folder(root, Path(cache_folder).expanduser().absolute() if cache_folder else default)


def mirror_of(path: Path) -> Mirror | None:
    """The mirror that the path lies in; None if it is a path in an ordinary folder."""
    text = str(path)
    if _MARK not in text:
        return None
    before, _, after = text.partition(_MARK)
    return _mirror(f"{before}{_MARK}{after.partition('/')[0]}")


@cache
def _mirror(root: str) -> Mirror:
    return Mirror(Path(root), Objects(url_of(Path(root))))


def named_root(root: str) -> str:
    """The root as a person names it: a folder, or a URL."""
    return url_of(Path(root)) if is_mirror(Path(root)) else root


def host_folder(root: Path) -> Path:
    """Where logs and the like lie, which only people of this host read: the root itself if it is a folder, else a folder of the cache."""
    if not is_mirror(root):
        return root
    before, _, after = str(root).partition(_MARK)
    return Path(before, HOST_FOLDERS, after)


def is_mirror(root: Path) -> bool:
    """Whether the root lies on an object store."""
    return _MARK in str(root)


def url_of(root: Path) -> str:
    """The URL that a mirror stands for."""
    return unquote(root.name)


def shown(text: str) -> str:
    """A message for people: mirrors are called by their URLs."""
    return _PATH.sub(lambda match: unquote(match[1]), text) if _MARK in text else text


def root_name(root: str | Path) -> str:
    """Short name of a root for people, and for names in Ray: the last part of its path or URL, in letters, digits, '-', '_' and '.'."""
    last = shown(str(root)).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.")[:MAX_NAME] or "root"


def worker_environment(root: Path) -> dict[str, str]:
    """Variables with which processes on other hosts treat the root as this one does."""
    return {LIMIT_VARIABLE: str(limit_bytes())} if is_mirror(root) else {}


def make_private(folder: Path) -> None:
    """Create a folder of the cache, and those above it that are missing, for the owner alone."""
    if not folder.is_dir():
        if folder.parent != folder:
            make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def replace_on_host(path: Path, data: bytes) -> None:
    """Write a file that only this host needs, as a new file: whoever has the old one open goes on with that."""
    make_private(path.parent)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(6)}"
    temporary.write_bytes(data)
    temporary.replace(path)


@contextmanager
def new_copy(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` that becomes the copy there at the end of the block."""
    make_private(path.parent)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(6)}"
    try:
        with temporary.open("xb") as file:
            hold(file.fileno())
            yield temporary
            os.fsync(file.fileno())
        keep_copy(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def keep_copy(temporary: Path, path: Path) -> None:
    """Make a whole file the copy at ``path``."""
    global _added  # noqa: PLW0603 (of the process)
    temporary.chmod(_COPY_MODE)
    size = temporary.stat().st_size
    temporary.replace(path)
    is_first = _added < 0
    _added = max(_added, 0) + size
    if _added * LOOK_EVERY > limit_bytes() or (is_first and _was_looked_at(path) < time.time() - LOOK_AFTER_S):
        _added = 0
        trim(path)


def drop_copy(path: Path) -> None:
    """Remove the copy at the path, if there is one."""
    with suppress(FileNotFoundError):
        path.unlink()


def has_copy(path: Path) -> bool:
    """Whether a copy is at the path; it counts as used."""
    try:
        found = path.stat()
        os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))  # the time of change is what verify_once knows the file by
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def limit_bytes() -> int:
    """How much all copies may take together."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    return int(given) if given.isdecimal() else DEFAULT_CACHE_BYTES


def trim(path: Path) -> None:
    """Remove copies of all mirrors beside that of ``path`` until they take nine tenths of the limit, and what dead processes were writing."""
    mirrors = _trim_lock(path).parent
    with _trim_lock(path).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process trims
        os.utime(lock.fileno())
        copies = sorted(_copies(mirrors))
        left, oldest = sum(size for _, size, _ in copies), time.time() - SPARED_S
        for used_at, size, copy in copies:
            if left <= limit_bytes() * 9 // 10 or used_at > oldest:
                return
            drop_copy(Path(copy))
            left -= size


def _trim_lock(path: Path) -> Path:
    return Path(str(path).partition(_MARK)[0], MIRRORS, ".trim")


def _was_looked_at(path: Path) -> float:
    """When a process last looked at the cache."""
    try:
        return _trim_lock(path).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _copies(mirrors: Path) -> Iterator[tuple[float, int, str]]:
    """(last use, bytes, path) of every copy."""
    for parent, folders, names in os.walk(mirrors):
        temporary = [name for name in folders if name.startswith(TEMPORARY_PREFIX)]
        folders[:] = [name for name in folders if name not in temporary]
        for name in (*temporary, *names):
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                found = path.stat()
                if name.startswith(TEMPORARY_PREFIX):
                    if found.st_mtime < time.time() - SPARED_S:
                        remove_unheld(path)
                elif not found.st_mode & 0o222:
                    yield found.st_atime, found.st_size, str(path)
