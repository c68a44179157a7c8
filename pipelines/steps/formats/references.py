"""Documents that lie outside their records, in files under folders that the operator named.

Invariant: nothing outside ``<root>/blobs`` and ``formats.dataref_roots`` is ever opened, whatever a reference says (links are followed
before the check); no reference reaches the network. What is returned has the promised SHA-256 and size. What is wrong with the reference is
an EnvelopeError (the record is dead); what is wrong with the store (I/O error, a named folder that is away) is BlobsUnavailable: the
batch fails and is read again, so that a store that is away for a while costs no document.
Cost: one read and one SHA-256 (1-2 GB/s).
"""

import errno
import hashlib
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipelines.storage.store import local
from schemas.envelope import DataReference
from schemas.errors import BlobsUnavailable, EnvelopeError, StoreUnavailable
from schemas.settings import Settings

BLOBS = "blobs"
_BAD_NAMES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
"""What the reference, and not the store, is to blame for."""


def blobs_folder(root: str | Path) -> Path:
    """Where ``headrace produce`` puts texts, and where they are always read."""
    return Path(root) / BLOBS


def read_reference(reference: DataReference, settings: Settings) -> bytes:
    """What the reference names. Raises EnvelopeError (dataref_missing, _mismatch, _forbidden, too_large), BlobsUnavailable."""
    if reference.size_bytes is not None:
        _check_size(reference.size_bytes, settings)
    data = _read(_path(reference.uri, settings), reference, settings)
    found = hashlib.sha256(data).hexdigest()
    if found != reference.sha256 or reference.size_bytes not in (None, len(data)):
        promised = "" if reference.size_bytes is None else f"{reference.size_bytes:,} bytes and "
        raise EnvelopeError(
            "dataref_mismatch",
            f"{_shown(reference.uri)} has {len(data):,} bytes and SHA-256 {found[:16]}…; the event says {promised}{reference.sha256[:16]}…",
        )
    return data


def _path(uri: str, settings: Settings) -> Path:
    """The file that a reference names, without links in its path. Raises EnvelopeError if it may not be read."""
    try:
        parts = urlsplit(uri)
        named = Path(settings.root, unquote(parts.path, errors="strict"))
        is_plain = parts.scheme in ("", "file") and parts.netloc in ("", "localhost") and not parts.query and not parts.fragment
        is_plain = is_plain and (parts.scheme == "file") == unquote(parts.path).startswith("/")
        path = Path(os.path.realpath(named))
    except (ValueError, OSError) as error:  # ValueError: a null character, a port or an address that is none
        raise EnvelopeError("dataref_forbidden", f"{_shown(uri)} cannot be the name of a file: {error}") from error
    if not is_plain:
        raise EnvelopeError("dataref_forbidden", f"{_shown(uri)} is neither a file: URI nor a path relative to the root; nothing else is read")
    if not any(path.is_relative_to(folder) for folder in _folders(settings)):
        raise EnvelopeError("dataref_forbidden", f"{_shown(uri)} lies outside the folders that formats.dataref_roots allows")
    return path


def _folders(settings: Settings) -> list[Path]:
    """The folders that may be read, without links in their paths."""
    return [Path(os.path.realpath(folder)) for folder in (str(blobs_folder(settings.root)), *settings.formats.dataref_roots)]


def _read(path: Path, reference: DataReference, settings: Settings) -> bytes:
    try:
        descriptor = os.open(local(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise EnvelopeError("dataref_forbidden", f"{_shown(reference.uri)} is not a regular file")
            _check_size(status.st_size, settings)
            return file.read(settings.formats.max_dataref_bytes)
    except StoreUnavailable as error:
        raise BlobsUnavailable(str(error)) from error
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise EnvelopeError("dataref_forbidden", f"{_shown(reference.uri)} is not a regular file") from error
        away = [folder for folder in settings.formats.dataref_roots if not Path(folder).is_dir()]
        if error.errno in _BAD_NAMES and not any(path.is_relative_to(os.path.realpath(folder)) for folder in away):
            raise EnvelopeError("dataref_missing", f"there is nothing at {_shown(reference.uri)}") from error
        raise BlobsUnavailable(
            f"{path} cannot be read: {error}; nothing was committed. Make the folder readable again and start once more, or, if it is gone for "
            "good, take it out of formats.dataref_roots: then its documents become dead letters"
        ) from error


def _check_size(size_bytes: int, settings: Settings) -> None:
    limit = settings.formats.max_dataref_bytes
    if size_bytes > limit:
        raise EnvelopeError("too_large", f"the document has {size_bytes:,} bytes; formats.max_dataref_bytes allows {limit:,}")


def _shown(uri: str) -> str:
    return repr(uri[:200])
