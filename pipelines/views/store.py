"""Where views lie: ``<root>/views/<name>/00000001.json``, a commit log per name, and in ``files/`` what its versions rest on.

Invariant: a version is created once, whole, and never changes; the files that it names are there before it is. They are named after their
contents, so that writing them twice is harmless and versions share them.
"""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import create_durably
from pipelines.storage.entries import parse_entry
from pipelines.storage.pinned import check_present
from pipelines.storage.store import names, read_bytes
from pipelines.storage.version import code_version
from schemas.errors import DatasetNotFound, ManifestCorrupt, SettingsError, ViewNotFound
from schemas.manifest import FileEntry
from schemas.view import VIEW_NAME, View

FOLDER = "views"
_LABEL = re.compile(r"([^@]+)(?:@([1-9][0-9]{0,7}))?")


def view_log(root: Path, name: str) -> CommitLog:
    """The versions of a view."""
    return CommitLog(root / FOLDER / name)


def check_name(name: str) -> None:
    """Raise SettingsError for what cannot be a view's name."""
    if not re.fullmatch(VIEW_NAME, name):
        raise SettingsError(f"{name!r} cannot be the name of a view; use small letters, digits, - and _, a letter first, 64 at most")


def parse_label(label: str) -> tuple[str, int | None]:
    """``NAME[@N]`` -> name and version. Raises SettingsError."""
    match = _LABEL.fullmatch(label)
    if match is None:
        raise SettingsError(f"{label!r} names no view; write NAME for the newest version of a view, or NAME@N")
    check_name(match[1])
    return match[1], int(match[2]) if match[2] else None


def view_names(root: Path) -> list[str]:
    """Names of all views, sorted."""
    return sorted(name for name in names(root / FOLDER) if re.fullmatch(VIEW_NAME, name) and view_log(root, name).latest())


def read_view(root: Path, name: str, version: int | None = None) -> tuple[View, str]:
    """A version (the newest by default) and the SHA-256 of its file. Raises ViewNotFound, ManifestCorrupt, ManifestNewer."""
    log = view_log(root, name)
    newest = log.latest()
    if newest == 0:
        known = ", ".join(view_names(root)) or "none"
        raise ViewNotFound(f"there is no view {name!r} under {root} (there are: {known}); make it with `headrace datasets view create {name} …`")
    try:
        data = log.read(version or newest)
        view = parse_entry(View, data, log.path(version or newest))
    except DatasetNotFound as error:
        raise ViewNotFound(f"view {name!r} has no version {version}; versions 1 to {newest} exist") from error
    if (view.name, view.version) != (name, version or newest):
        raise ManifestCorrupt(f"{log.path(version or newest)} says that it is {view.label}; restore it from a copy")
    return view, hashlib.sha256(data).hexdigest()


def publish_view(root: Path, view: View) -> None:
    """Make the version real. Raises CommitConflict if another one of this number was first, ShardCorrupt if a file that it names is gone."""
    check_present(root, view.files)
    view = view.model_copy(update={"code_version": code_version()})
    view_log(root, view.name).publish(view.version, (view.model_dump_json(indent=1, exclude_none=True) + "\n").encode())


def store_file(root: Path, name: str, kind: str, suffix: str, data: bytes, rows: int) -> FileEntry:
    """Keep the bytes under the view, named after themselves; durable when this returns."""
    sha256 = hashlib.sha256(data).hexdigest()
    path = root / FOLDER / name / "files" / f"{kind}-{sha256[:32]}{suffix}"
    with suppress(FileExistsError):
        create_durably(path, data)
    return FileEntry(path=path.relative_to(root).as_posix(), rows=rows, size_bytes=len(data), sha256=sha256)


def checked_file(root: Path, entry: FileEntry) -> bytes:
    """The bytes that a view version names. Raises ManifestCorrupt if they are not those."""
    try:
        data = read_bytes(root / entry.path)
    except FileNotFoundError as error:
        raise ManifestCorrupt(f"{root / entry.path}, which a view needs, is missing; restore it from a copy") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ManifestCorrupt(f"{root / entry.path} does not have the bytes that the view was made with; restore it from a copy")
    return data
