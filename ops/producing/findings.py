"""The results of reading a source, and the id of a document that has none.

A document's id is its own, else it says where the document was found: machine, full path, number of the record. So the same file has the same id
however its path is typed, and files of two people, or of two machines, never share one. Lines of standard input have no place that lasts:
their ids come from their content.
"""

import hashlib
import socket
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipelines.steps.formats.html import page_title
from schemas.events import DocumentReceived, is_document_id

FIELDS = frozenset(DocumentReceived.model_fields)


class Found(NamedTuple):
    """A document, with its id filled in."""

    origin: str
    document: DocumentReceived


class Failed(NamedTuple):
    """A file or a record that cannot be read."""

    origin: str
    error: str


class TooLarge(NamedTuple):
    """A file or a record that no topic takes, because it is larger than ``kafka.max_request_bytes``."""

    origin: str
    size_bytes: int


class Skipped(NamedTuple):
    """A file in a folder, or a record of an archive, that is of no kind that is read."""

    origin: str
    reason: str
    """What it is, in a few words without names: skipped things are counted by it."""


Finding = Found | Failed | TooLarge | Skipped


def place_id(place: str) -> str:
    """An id for what was found at ``place``; a place that cannot be an id (too long, control characters, no UTF-8) is hashed."""
    try:
        encoded = place.encode()
    except UnicodeEncodeError:
        encoded = place.encode("utf-8", "surrogateescape")
        return f"sha256:{hashlib.sha256(encoded).hexdigest()[:32]}"
    return place if is_document_id(place) else f"sha256:{hashlib.sha256(encoded).hexdigest()[:32]}"


def file_id(path: str, record: int | None = None) -> str:
    """An id for a file (RFC 8089: ``file://machine/full/path``), or for its ``record``-th record."""
    place = f"file://{socket.gethostname()}{Path(path).resolve().as_posix()}"
    return place_id(place if record is None else f"{place}#{record}")


def content_id(content: bytes) -> str:
    """An id for content without a place."""
    return f"sha256:{hashlib.sha256(content).hexdigest()[:32]}"


def no_text_field(text_field: str, names: Iterable[object]) -> str:
    """What is wrong with a record or table that has these fields only."""
    listed = ", ".join(sorted(map(str, names)))[:200] or "none"
    return f"there is no field {text_field!r}; the fields are: {listed} (--text-field names another)"


def from_record(origin: str, record: Any, text_field: str, fallback_id: str) -> Found | Failed:
    """A document from a JSON or Parquet record. Fields that a document does not have are left out; a numeric id and a time become text."""
    if not isinstance(record, dict):
        return Failed(origin, 'it is not an object with a text, such as {"text": "…"}')
    if text_field not in record:
        return Failed(origin, no_text_field(text_field, record))
    values = {name: _as_json(value) for name, value in record.items() if name in FIELDS} | {"text": record[text_field]}
    own_id = values.get("id")
    values["id"] = fallback_id if own_id in (None, "") else str(own_id) if type(own_id) is int else own_id
    try:
        return Found(origin, DocumentReceived.model_validate(values))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        return Failed(origin, "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problems))


def _as_json(value: Any) -> Any:
    """Parquet has times, JSON has none."""
    return value.isoformat() if isinstance(value, date) else value


def from_text(origin: str, text: str, doc_id: str, title: str | None = None) -> Found | Failed:
    """A document that is a whole file."""
    if not text.strip():
        return Failed(origin, "it holds no text")
    return Found(origin, DocumentReceived(id=doc_id, text=text, title=title or None))


def from_page(origin: str, page: str, doc_id: str) -> Found | Failed:
    """A document that is an HTML page; its main content is taken where it is read."""
    if not page.strip():
        return Failed(origin, "it holds no text")
    return Found(origin, DocumentReceived(id=doc_id, text=page, format="html", title=page_title(page)))


def limited(findings: Iterator[Finding], num_documents: int | None) -> Iterator[Finding]:
    """Findings up to and with the ``num_documents``-th document; all of them without a limit."""
    num_found = 0
    for finding in findings:
        yield finding
        num_found += isinstance(finding, Found)
        if num_found == num_documents:
            return
