"""Kafka record -> document, or the retraction of one: the way every document comes in.

Besides the events of schemas.envelope a plain JSON object without ``ce_`` headers is a document, and a null value under a key retracts the
document that the key names. A document's own field ``dataref`` names a blob that holds its text.

Invariant: whatever the bytes, the answer is a value or an EnvelopeError whose ``rule`` is one of schemas.envelope.RULES; never another
exception (but what ``read_reference`` raises).
Cost: ``decode_document`` is called once per record and takes 2-4 us for 2 KB of text, most of it JSON (orjson).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from schemas.envelope import (
    JSON_TYPE_NAMES,
    DataReference,
    Headers,
    Mode,
    Raw,
    json_object,
    open_record,
    reference_in,
    refuse_reference,
    utf8_text,
)
from schemas.errors import EnvelopeError
from schemas.events import DOCUMENT_RECEIVED, DOCUMENT_RETRACTED, FORMATS, is_document_id

_STRING_FIELDS = ("url", "title", "lang", "domain", "license", "created_at", "source")


class Document(NamedTuple):
    """A document as its producer sent it. ``doc_id`` is its own id, else the record's key, else ``source#id`` of its event, else
    ``topic/partition/offset``; its source is its own, else that of its event; what is not known is None."""

    doc_id: str
    text: str
    url: str | None
    title: str | None
    lang: str | None
    domain: str | None
    license: str | None
    created_at: str | None
    source: str | None
    format: str = "text"
    """``text``, ``html``, or ``auto``: one of the two."""
    raw: Raw | None = None
    """What ``text`` is to be decoded from; then that is empty."""
    meta: dict[str, Any] | None = None


class Attributes(NamedTuple):
    """What names a document whose event's headers have been checked already."""

    source: str
    id: str


class Retraction(NamedTuple):
    """The document that must not be in later versions."""

    doc_id: str


def decode_document(
    key: bytes | None,
    value: bytes | memoryview | None,
    headers: Headers,
    topic: str,
    partition: int,
    offset: int,
    *,
    max_bytes: int,
    read_reference: Callable[[DataReference], bytes] = refuse_reference,
) -> Document | Retraction:
    """What a record on the documents topic says. Raises EnvelopeError and what ``read_reference`` raises, nothing else.

    ``topic``, ``partition`` and ``offset`` only name a document that has no name of its own; ``max_bytes`` limits the value.
    """
    if value is not None and len(value) > max_bytes:
        _refuse_size(len(value), max_bytes)
    attributes: dict[str, str] | None = None
    data: dict[str, Any] | Raw
    kind: Mode = "data"
    if headers:
        named = {name.lower(): header for name, header in headers}
        if value is None and not named.get("ce_dataref"):
            return _tombstone(key)
        kind, attributes, data = open_record(value, named, read_reference)
    elif value is None:
        return _tombstone(key)
    else:
        data = json_object(value, "value")
    if attributes is not None and attributes["type"] != DOCUMENT_RECEIVED:
        return _retraction(attributes["type"], data)
    event = Attributes(attributes["source"], attributes["id"]) if attributes is not None else None
    if type(data) is Raw:
        return _raw_document(_given_name(key, event) or f"{topic}/{partition}/{offset}", data, kind, attributes or {})
    assert type(data) is dict
    return _json_document(key, data, event, (topic, partition, offset), read_reference)


def decode_json_document(
    key: bytes | None,
    value: bytes | memoryview,
    event: Attributes | None,
    place: tuple[str, int, int],
    *,
    max_bytes: int,
    read_reference: Callable[[DataReference], bytes] = refuse_reference,
) -> Document:
    """``decode_document`` of a record that has no headers (``event`` is None), or whose headers say that it is a document in JSON and are right.

    ``place`` is (topic, partition, offset). Raises EnvelopeError and what ``read_reference`` raises.
    """
    if len(value) > max_bytes:
        _refuse_size(len(value), max_bytes)
    return _json_document(key, json_object(value, "value"), event, place, read_reference)


def _refuse_size(size_bytes: int, max_bytes: int) -> NoReturn:
    raise EnvelopeError("too_large", f"the value has {size_bytes:,} bytes; ingest.max_document_bytes allows {max_bytes:,}")


def _json_document(
    key: bytes | None,
    data: dict[str, Any],
    event: Attributes | None,
    place: tuple[str, int, int],
    read_reference: Callable[[DataReference], bytes],
) -> Document:
    doc_id = data.get("id")
    if doc_id is None:
        topic, partition, offset = place
        doc_id = _given_name(key, event) or f"{topic}/{partition}/{offset}"
    else:
        _check_id(doc_id)
    url, title, lang, domain, license_, created_at, source = _strings(data)
    if source is None and event is not None:
        source = event.source
    form = data.get("format") or "text"
    if form != "text":
        _check_format(form)
    if data.get("dataref") is None or data.get("text"):
        return Document(doc_id, _text(data), url, title, lang, domain, license_, created_at, source, form, None, data.get("meta"))
    content = read_reference(reference_in(data))
    _check_not_blank(content)
    return Document(doc_id, "", url, title, lang, domain, license_, created_at, source, form, Raw(content, None), data.get("meta"))


def _raw_document(doc_id: str, raw: Raw, kind: Mode, attributes: Mapping[str, str]) -> Document:
    """A page in binary mode: what JSON would say of it may stand in extension attributes of the same names."""
    _check_not_blank(raw.data)
    url, title, lang, domain, license_, created_at, source = (attributes.get(name) for name in _STRING_FIELDS)
    return Document(doc_id, "", url, title, lang, domain, license_, created_at, source, kind, raw)


def _check_not_blank(data: bytes | memoryview) -> None:
    if not data or (bytes(data[:4096]).isspace() and bytes(data).isspace()):
        raise EnvelopeError("empty_text", f"the text has {len(data)} bytes and all are white space")


def _check_format(form: object) -> None:
    if type(form) is not str:
        raise EnvelopeError("wrong_type", f'"format" is {JSON_TYPE_NAMES[type(form)]}; it must be a string')
    if form not in FORMATS:
        raise EnvelopeError("bad_format", f'"format" is {form[:40]!r}; it must be one of {", ".join(FORMATS)}')


def _tombstone(key: bytes | None) -> Retraction:
    if not key:
        raise EnvelopeError("null_without_key", "the value is null, which retracts the document that the key names, but there is no key")
    doc_id = utf8_text(key, "key of a null value")
    _check_id(doc_id)
    return Retraction(doc_id)


def _retraction(event_type: str, data: Mapping[str, Any] | Raw) -> Retraction:
    if event_type != DOCUMENT_RETRACTED:
        raise EnvelopeError("wrong_event_type", f"{event_type!r} is not for this topic; send {DOCUMENT_RECEIVED} or {DOCUMENT_RETRACTED}")
    if isinstance(data, Raw):
        raise EnvelopeError("unknown_content_type", f"a {DOCUMENT_RETRACTED} is JSON; send application/json")
    doc_id = data.get("id")
    _check_id(doc_id)
    return Retraction(str(doc_id))


def _text(data: Mapping[str, Any]) -> str:
    text = data.get("text")
    if type(text) is not str:
        if "text" not in data:
            _explain_missing(data)
        raise EnvelopeError("wrong_type", f'"text" is {JSON_TYPE_NAMES[type(text)]}; it must be a string')
    if not text or text.isspace():
        raise EnvelopeError("empty_text", f'"text" has {len(text)} characters and all are white space')
    return text


def _explain_missing(data: Mapping[str, Any]) -> NoReturn:
    """Say what an object without a text looks like."""
    if "specversion" in data and ("data" in data or "data_base64" in data):
        raise EnvelopeError(
            "missing_text",
            'the value has no "text"; it looks like a CloudEvent in structured mode, which needs content-type: application/cloudevents+json',
        )
    if isinstance(data.get("messages"), list):
        raise EnvelopeError("missing_text", 'the value has no "text"; it looks like a conversation ("messages"), and documents are read here')
    raise EnvelopeError("missing_text", 'the document has no "text"; send {"text": "…"}')


def _strings(data: Mapping[str, Any]) -> list[str | None]:
    values = [data.get(name) for name in _STRING_FIELDS]
    for name, value in zip(_STRING_FIELDS, values, strict=True):
        if value is not None and type(value) is not str:
            raise EnvelopeError("wrong_type", f'"{name}" is {JSON_TYPE_NAMES[type(value)]}; it must be a string')
    meta = data.get("meta")
    if meta is not None and type(meta) is not dict:
        raise EnvelopeError("wrong_type", f'"meta" is {JSON_TYPE_NAMES[type(meta)]}; it must be an object')
    return values


def _check_id(doc_id: object) -> None:
    if type(doc_id) is not str:
        raise EnvelopeError("wrong_type", f'"id" is {JSON_TYPE_NAMES[type(doc_id)]}; it must be a string')
    if not is_document_id(doc_id):
        raise EnvelopeError("bad_id", f"the id has {len(doc_id)} characters; it must have 1 to 1,024 and no control characters")


def _given_name(key: bytes | None, event: Attributes | None) -> str | None:
    """The key comes first: a later null value under it is Kafka's way of deleting what it names."""
    if key:
        try:
            name = key.decode()
        except UnicodeDecodeError:
            name = ""
        if is_document_id(name):
            return name
    if event is not None:
        name = f"{event.source}#{event.id}"
        if is_document_id(name):
            return name
    return None
