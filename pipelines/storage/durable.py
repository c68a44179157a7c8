"""Files and folders that are either absent or whole, also after a power cut.

A file is written under a temporary name in its own folder. Order: (1) its bytes are flushed to disk, (2) it gets its name, by a rename or a
link, (3) its folder is flushed. A folder that was not there is created first, and its name is flushed in its parent, from the top down: so
when a function returns, every name on the way to the file is on disk. Costs a flush of the file, one of its folder, and one per new folder.

Where the path lies in a mirror of an object store (storage/mirror.py), the file is written there and sent to the store before it gets its name;
``create_durably`` is one conditional request. An object is whole or absent too, and durable when the store has answered.

The temporary name starts with ``.tmp-``, and its writer holds it (storage/holds.py): the garbage collector recognises what a crash left.
Over NFS the answer to a rename or a link may be lost and the request be sent again, which fails because it was done: what is at the path is
compared with the file that was written before it counts as another's.
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pipelines.storage.holds import TEMPORARY_PREFIX, hold
from pipelines.storage.mirror import Mirror, host_folder, keep_copy, make_private, mirror_of
from schemas.errors import DatasetError, SettingsError
from schemas.manifest import FileEntry

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer."""


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (names) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make everything in the folder durable: the files of others' writing, their names, and the folders below."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def make_folder(folder: Path) -> None:
    """Create a folder and the parents that are missing, every new name durable; harmless if it is there."""
    if folder.is_dir():
        return
    if mirror_of(folder) is not None:
        make_private(folder)
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def durable_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file for writing and mapping that appears at ``path`` when the block ends without an error, replacing what was there."""
    with _new_file(path) as (temporary, file):
        yield file
        _sync(file)
        if (mirror := mirror_of(path)) is not None:
            _send(mirror, temporary, path)
            return
        try:
            temporary.replace(path)
        except FileNotFoundError:
            if not _is_at(path, file):
                raise
    sync_folder(path.parent)


def send(file: Path, path: Path) -> None:
    """Make the bytes of a local file, which nobody writes to any more, the object at ``path``; it is also the copy of it on this host."""
    mirror = mirror_of(path)
    assert mirror is not None
    make_private(path.parent)
    temporary = _temporary(path)
    os.link(file, temporary)
    try:
        _send(mirror, temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _send(mirror: Mirror, temporary: Path, path: Path) -> None:
    """Make a whole local file an object, and the copy of it on this host."""
    mirror.objects.put(mirror.key(path), temporary)
    keep_copy(temporary, path)


@contextmanager
def durable_folder(path: Path, last: str = "") -> Iterator[Path]:
    """An empty folder for writing into that appears at ``path``, with all that is in it on disk, when the block ends without an error.

    Raises FileExistsError if a folder that is not empty is there. On an object store its files appear one by one, the file called
    ``last`` at the end. The folder counts as there when that file is there; without ``last``, when any file is.
    """
    temporary, descriptor = held_folder(path)
    try:
        yield temporary
        sync_tree(temporary)
        if (mirror := mirror_of(path)) is not None:
            _send_folder(mirror, temporary, path, last)
            return
        _rename_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)
    sync_folder(path.parent)


def _send_folder(mirror: Mirror, temporary: Path, path: Path, last: str) -> None:
    if mirror.objects.stat(mirror.key(path / last)) is not None if last else mirror.objects.listed(mirror.key(path)):
        raise FileExistsError(errno.EEXIST, "a folder is there already", str(path))
    names = sorted((file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file()), key=lambda name: (str(name) == last, name))
    for name in names:
        make_private((path / name).parent)
        _send(mirror, temporary / name, path / name)


def replace_durably(path: Path, data: bytes) -> None:
    """Write ``data`` at ``path``, replacing what was there; readers see the old bytes or the new ones."""
    with durable_file(path) as file:
        file.write(data)


def create_durably(path: Path, data: bytes) -> None:
    """Write ``data`` at ``path`` if nothing is there; raises FileExistsError otherwise, SettingsError on a file system without hard links.

    The link is the moment of truth: the kernel lets exactly one of several writers create the name.
    """
    if (mirror := mirror_of(path)) is not None:
        mirror.objects.create(mirror.key(path), data)
        return
    with _new_file(path) as (temporary, file):
        file.write(data)
        _sync(file)
        _link(temporary, path, file)
    sync_folder(path.parent)


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; reads it once, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(root: Path, path: Path, rows: int) -> FileEntry:
    """Entry of a finished file, for a manifest."""
    return FileEntry(path=path.relative_to(root).as_posix(), rows=rows, size_bytes=path.stat().st_size, sha256=sha256_file(path))


def check_root(root: Path) -> None:
    """Create the root if need be and try what everything durable rests on. Raises SettingsError if files cannot be written or linked there,
    DatasetError if the disk is full (no setting is wrong).
    """
    probe = root / f"{TEMPORARY_PREFIX}link-{secrets.token_hex(6)}"
    if (mirror := mirror_of(root)) is not None:
        make_private(root)
        make_private(host_folder(root))
        _check_store(mirror, mirror.key(probe))
        return
    try:
        create_durably(probe, b"")
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(f"nothing can be written under the root {root}: {error}; free some space") from error
        raise SettingsError(f"nothing can be written under the root {root}: {error}; make it writable, or name another --root") from error


def _check_store(mirror: Mirror, probe: str) -> None:
    """Try what every commit rests on: that the store makes an object only if there is none."""
    mirror.objects.create(probe, b"1")
    try:
        mirror.objects.create(probe, b"2")
    except FileExistsError:
        return
    finally:
        mirror.objects.delete(probe)
    raise SettingsError(
        f"the store of {mirror.objects.url} replaces an object although it was asked to make it only if there is none (If-None-Match), and Headrace "
        "commits with that: use a store that honours it, such as S3, Google Cloud Storage, Azure or a recent MinIO or Ceph"
    )


def held_folder(path: Path) -> tuple[Path, int]:
    """A new temporary folder beside ``path``, and the descriptor that holds it until ``os.close``."""
    make_folder(path.parent)
    while True:
        temporary = _temporary(path)
        temporary.mkdir()
        with suppress(FileNotFoundError):  # the collector was faster
            descriptor = os.open(temporary, os.O_RDONLY)
            hold(descriptor)
            if temporary.exists():
                return temporary, descriptor
            os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(6)}"


@contextmanager
def _new_file(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A temporary file for ``path``, held until the block ends, and gone then."""
    make_folder(path.parent)
    temporary, file = _held_file(path)
    try:
        with file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


def _held_file(path: Path) -> tuple[Path, IO[bytes]]:
    while True:
        temporary = _temporary(path)
        file = temporary.open("x+b")
        hold(file.fileno())
        if temporary.exists():
            return temporary, file
        file.close()  # the collector was faster


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _link(temporary: Path, path: Path, file: IO[bytes]) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        if not _is_at(path, file):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise SettingsError(
            f"the file system of {path.parent} has no hard links ({error.strerror}), and Headrace commits with them; "
            "put the root on one that does, such as ext4, XFS, Btrfs, ZFS or NFS (exFAT, most SMB and object-store mounts do not)"
        ) from error


def _rename_folder(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, "a folder is there already", str(path)) from error
        raise


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether ``path`` is the name of this very file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
