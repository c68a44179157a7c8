"""Reading an entry of a log: an entry that a newer Headrace wrote gives another error than a damaged one."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pipelines.storage.version import code_version
from schemas.errors import ManifestCorrupt, ManifestNewer
from schemas.record import Record

_Entry = TypeVar("_Entry", bound=Record)
_UNKNOWN = {"extra_forbidden", "less_than_equal", "enum", "literal_error"}
"""Kinds of pydantic's errors for what is well-formed and not known here: a new field, a later format, another value of a list."""


def parse_entry(kind: type[_Entry], data: bytes, path: Path, what: str = "manifest", advice: str = "restore it from a copy") -> _Entry:
    """The entry at ``path``. Error messages contain ``what``, the kind of entry, and ``advice``.

    Raises ManifestNewer if another version of Headrace wrote something that this one does not know, else ManifestCorrupt if it is not valid.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        writer, problem = _writer(data), error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "it"
        if writer not in (None, code_version()) and {found["type"] for found in error.errors()} <= _UNKNOWN:
            raise ManifestNewer(
                f"{path} was written by Headrace {writer}; this is Headrace {code_version()}, which does not know {place!r} ({problem['msg']}): "
                f"use Headrace {writer} or a later one"
            ) from error
        raise ManifestCorrupt(f"{path} is not a valid {what}: {place}: {problem['msg']}; {advice}") from error


def _writer(data: bytes) -> str | None:
    """Who wrote it, if it says so."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    version = found.get("code_version") if isinstance(found, dict) else None
    return version if isinstance(version, str) else None
