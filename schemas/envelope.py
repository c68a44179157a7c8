"""CloudEvents envelope <-> Kafka record.

Binary mode (``ce_`` headers, data in the value) and structured mode (content type ``application/cloudevents+json``, everything in the
value) are read; binary mode is written. Header names are compared without case; of a header that comes twice the last one counts, as in
Kafka's clients.

Data is JSON, or the page itself (content type ``text/html`` or ``text/plain``, in any character set: such bytes are handed on as they are).
A content type that names a character set only is plain text in that set (RFC 2045: text/plain is what a missing media type means); JSON, which
is always UTF-8, where it names that.
It may lie elsewhere: the ``dataref`` extension, with ``datarefsha256`` and ``datarefsize``, names a blob that holds exactly what the value
would have held.

Invariant: whatever the bytes, the answer is a value or an EnvelopeError whose ``rule`` is one of RULES; never another exception (but
what ``read_reference`` raises).
Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md and
https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/dataref.md
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple, NoReturn

import orjson
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from schemas.errors import EnvelopeError
from schemas.events import EVENT_TYPES, Event, is_traceparent

Headers = Sequence[tuple[str, bytes | None]]
"""Kafka record headers as kafka-python has them: ordered, names may repeat, values may be null."""

RULES: Mapping[str, str] = {
    "null_without_key": "a null value retracts the document that the key names, and there is no key",
    "too_large": "the value is larger than ingest.max_document_bytes",
    "unknown_content_type": "the content type is neither JSON in UTF-8 nor HTML or plain text",
    "not_utf8": "the bytes are not UTF-8",
    "bad_json": "the value is not JSON",
    "json_too_deep": "the JSON is nested more than 1,024 levels deep",
    "lone_surrogate": "a string escapes half of a surrogate pair, which is no character",
    "not_an_object": "the value, or a structured event's data, is JSON but not an object",
    "missing_attribute": "a CloudEvents attribute that must be there is missing or empty",
    "bad_attribute": "a CloudEvents attribute has a value that it cannot have",
    "wrong_specversion": "the CloudEvents version is not 1.0",
    "wrong_event_type": "an event of this type does not belong on this topic",
    "missing_text": "the document has no text",
    "empty_text": "the document's text is nothing but white space",
    "wrong_type": "a field of the document has the wrong JSON type",
    "bad_id": "the document's id is empty, too long, or holds control characters",
    "bad_data": "the event's data does not fit its type",
    "bad_format": "the document's format is none that can be read",
    "bad_charset": "no character set fits the bytes, or not the one that was declared",
    "bad_header": "the name of a header is not UTF-8",
    "broken_record": "the record's bytes do not follow Kafka's record format",
    "dataref_missing": "there is nothing at the place that dataref names",
    "dataref_mismatch": "what lies there has another size or SHA-256 than the event says",
    "dataref_forbidden": "dataref names a place outside formats.dataref_roots, or one that is no safe file name",
}
"""Every rule that an EnvelopeError can name. The names are stable: manifests count them and alerts watch them."""

_STRING_ATTRIBUTES = frozenset({"id", "source", "type", "specversion", "time", "subject", "datacontenttype", "dataref", "datarefsha256"})
JSON_TYPE_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
"""What messages call the Python types that JSON is parsed into."""
_UTF8 = frozenset({"utf-8", "utf8", "us-ascii"})
"""Names of UTF-8 and of what is part of it."""
Mode = Literal["data", "structured", "html", "text", "auto"]
"""How data is written: JSON, a structured event, or the page or text itself (``auto``: one of the two)."""
_RAW_TYPES: Mapping[str, Mode] = {"text/html": "html", "application/xhtml+xml": "html", "text/plain": "text"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class KafkaRecord(NamedTuple):
    """What a producer sends."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class DataReference(NamedTuple):
    """Where data lies that is not in the record, and what must be found there."""

    uri: str
    sha256: str
    size_bytes: int | None


class Raw(NamedTuple):
    """Text that is still bytes, and the character set that its producer declared, if any."""

    data: bytes | memoryview
    charset: str | None


def encode(event: Event, key: str | None = None) -> KafkaRecord:
    """Binary mode. The key is ``key``, else the event's subject. Raises EnvelopeError (lone_surrogate) if a text has no UTF-8 form."""
    attributes = {
        "id": event.id,
        "source": event.source,
        "specversion": "1.0",
        "type": event.type,
        "time": event.time.isoformat().replace("+00:00", "Z"),
        "subject": event.subject,
    }
    try:
        headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items() if text is not None]
        value = event.data.model_dump_json(exclude_none=True).encode()
        record_key = key if key is not None else event.subject
        encoded_key = record_key.encode() if record_key is not None else None
    except (UnicodeEncodeError, PydanticSerializationError) as error:
        raise EnvelopeError("lone_surrogate", f"event {event.id!r} holds half of a surrogate pair and has no UTF-8 form: {error}") from error
    headers.append(("content-type", b"application/json"))
    if event.traceparent is not None:
        headers.append(("traceparent", event.traceparent.encode()))
    return KafkaRecord(encoded_key, value, headers)


def decode_event(value: bytes | None, headers: Headers) -> Event:
    """Any event of EVENT_TYPES, in binary or structured mode. Raises EnvelopeError."""
    if value is None:
        raise EnvelopeError("not_an_object", "the value is null; an event has data")
    _, attributes, data = open_record(value, {name.lower(): header for name, header in headers}, refuse_reference)
    if attributes is None:
        raise EnvelopeError("missing_attribute", "the record has no ce_ headers; publish it as a CloudEvent in binary or structured mode")
    model = EVENT_TYPES.get(attributes["type"])
    if model is None:
        raise EnvelopeError("wrong_event_type", f"there is no event type {attributes['type']!r}; known are {', '.join(EVENT_TYPES)}")
    if "time" not in attributes:
        raise EnvelopeError("missing_attribute", "the event has no time")
    known = {name: attributes.get(name) or None for name in ("id", "source", "type", "time", "subject", "traceparent")}
    try:
        return Event.model_validate(known | {"data": model.model_validate(None if isinstance(data, Raw) else data)})
    except ValidationError as error:
        raise EnvelopeError("bad_data", f"{attributes['type']}: {_problems(error)}") from error


def refuse_reference(reference: DataReference) -> bytes:
    """For readers without a blob store. Raises EnvelopeError."""
    raise EnvelopeError("dataref_forbidden", f"dataref names {reference.uri[:200]!r}, and references are not read here; put the data into the event")


def is_json(content_type: bytes | None) -> bool:
    """Whether a value with this ``content-type`` header is plain JSON in UTF-8."""
    return _content_mode(content_type)[0] == "data"


def reference_in(named: Mapping[str, Any]) -> DataReference:
    """The reference that attributes or fields make up. The hash may be the last part of the URI, as in a content-addressed store."""
    uri, sha256, size = named.get("dataref"), named.get("datarefsha256"), named.get("datarefsize")
    if type(uri) is not str or not uri:
        raise EnvelopeError("bad_attribute", "dataref must be a URI reference")
    if sha256 is None:
        sha256 = uri.rpartition("/")[2]
    if type(sha256) is not str or not _SHA256.fullmatch(sha256):
        raise EnvelopeError(
            "bad_attribute", "a dataref needs its content's SHA-256, 64 hexadecimal digits, as datarefsha256 or as the end of the URI"
        )
    if type(size) is str and size.isdecimal() and size.isascii() and len(size) < 19:
        size = int(size)
    if size is not None and (type(size) is not int or size < 0):
        raise EnvelopeError("bad_attribute", "datarefsize must be a number of bytes")
    return DataReference(uri, sha256, size)


def open_record(
    value: bytes | memoryview | None, named: Mapping[str, bytes | None], read_reference: Callable[[DataReference], bytes]
) -> tuple[Mode, dict[str, str] | None, dict[str, Any] | Raw]:
    """How the data is written, the event's attributes (None for plain JSON), and the data."""
    mode, charset = _content_mode(named.get("content-type"))
    if mode is None:
        raise EnvelopeError(
            "unknown_content_type",
            f"the content type is {_shown(named['content-type'])}; send application/json or application/cloudevents+json, in UTF-8, "
            "or text/html or text/plain",
        )
    if mode == "structured":
        return _structured(json_object(value or b"", "value"), read_reference)
    attributes = _binary_attributes(named)
    if attributes is not None and "dataref" in attributes:
        value = read_reference(reference_in(attributes))
    assert value is not None
    return mode, attributes, json_object(value, "value") if mode == "data" else Raw(value, charset)


@lru_cache(maxsize=256)
def _content_mode(content_type: bytes | None) -> tuple[Mode | None, str | None]:
    """How to read a value of this content type, and its character set; None if it cannot be read. No content type means JSON."""
    if not content_type:
        return "data", None
    media, *parameters = content_type.decode("utf-8", "replace").lower().split(";")
    if not media.strip() or ("/" not in media and "=" in media):  # a character set without a media type
        media, parameters = "", [media, *parameters]
    pairs = [parameter.partition("=") for parameter in parameters]
    charsets = [value.strip().strip("\"'") for name, _, value in pairs if name.strip() == "charset"]
    media, charset = media.strip(), charsets[-1] if charsets else None
    if not media:
        return _charset_alone(charset)
    if media in _RAW_TYPES:
        return _RAW_TYPES[media], charset
    if not set(charsets) <= _UTF8:
        return None, None
    if media == "application/cloudevents+json":
        return "structured", None
    is_json = media in ("application/json", "text/json") or (media.endswith("+json") and not media.startswith("application/cloudevents"))
    return "data" if is_json else None, None


def _charset_alone(charset: str | None) -> tuple[Mode | None, str | None]:
    """A character set without a media type: JSON is written in UTF-8, so in another one it is a page or a text."""
    if not charset:
        return None, None
    return ("data", None) if charset in _UTF8 else ("auto", charset)


def _binary_attributes(named: Mapping[str, bytes | None]) -> dict[str, str] | None:
    """The ``ce_`` headers by their short names; None if there are none. A null header counts as a missing attribute."""
    try:
        attributes = {name[3:]: value.decode() if value else "" for name, value in named.items() if name[:3] == "ce_"}
    except UnicodeDecodeError as error:
        raise EnvelopeError("not_utf8", f"a ce_ header is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}") from error
    if not attributes:
        return None
    trace = named.get("traceparent")
    if trace is not None:
        attributes["traceparent"] = trace.decode("utf-8", "replace")
    return _checked(attributes)


def _structured(event: dict[str, Any], read_reference: Callable[[DataReference], bytes]) -> tuple[Mode, dict[str, str], dict[str, Any] | Raw]:
    data = event.pop("data", None)
    encoded = event.pop("data_base64", None)
    if data is not None and encoded is not None:
        raise EnvelopeError("bad_attribute", 'the event has both "data" and "data_base64"; CloudEvents 1.0 allows one of them')
    for name, value in event.items():
        if name in _STRING_ATTRIBUTES and type(value) is not str and value is not None:
            raise EnvelopeError("bad_attribute", f"{name!r} is {JSON_TYPE_NAMES[type(value)]}; it must be a string")
    attributes = _checked({name: value for name, value in event.items() if type(value) is str})
    mode, charset = _content_mode(attributes.get("datacontenttype", "").encode())
    if mode is None or mode == "structured":
        raise EnvelopeError("unknown_content_type", f"datacontenttype is {attributes['datacontenttype'][:80]!r}; send application/json")
    content: bytes | None = None
    if event.get("dataref") is not None:
        content = read_reference(reference_in(event))
    elif encoded is not None:
        content = _base64(encoded)
    elif mode != "data" and type(data) is str:
        content, charset = data.encode(), "utf-8"
    if content is not None:
        return mode, attributes, json_object(content, "data") if mode == "data" else Raw(content, charset)
    if type(data) is not dict or mode != "data":
        raise EnvelopeError("not_an_object", f'"data" is {JSON_TYPE_NAMES[type(data)]}; it must be {"an object" if mode == "data" else "a string"}')
    return mode, attributes, data


def _base64(encoded: object) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True) if type(encoded) is str else b""
    except (binascii.Error, ValueError) as error:
        raise EnvelopeError("bad_attribute", f'"data_base64" is not base64: {error}') from error


def _checked(attributes: dict[str, str]) -> dict[str, str]:
    """Refuse what CloudEvents 1.0 refuses; a malformed traceparent is dropped, as W3C asks."""
    get = attributes.get
    if not (get("specversion") and get("id") and get("source") and get("type")):
        missing = [name for name in ("id", "source", "specversion", "type") if not get(name)]
        raise EnvelopeError("missing_attribute", f"the event has no {', '.join(missing)}; CloudEvents 1.0 requires id, source, specversion and type")
    if attributes["specversion"] != "1.0":
        raise EnvelopeError("wrong_specversion", f"the CloudEvents version is {attributes['specversion'][:40]!r}; only 1.0 is read")
    if "time" in attributes:
        _check_time(attributes["time"])
    if "traceparent" in attributes and not is_traceparent(attributes["traceparent"]):
        del attributes["traceparent"]
    return attributes


def _check_time(text: str) -> None:
    try:
        aware = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        raise EnvelopeError("bad_attribute", f"time is {text[:40]!r}; it must be RFC 3339 with an offset, such as 2026-01-31T12:00:00Z")


def json_object(value: bytes | memoryview, what: str) -> dict[str, Any]:
    """The object that ``value`` is in JSON; ``what`` names it in the message. Raises EnvelopeError."""
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        _explain(bytes(value), what, error)
    if type(parsed) is not dict:
        raise EnvelopeError("not_an_object", f'the {what} is {JSON_TYPE_NAMES[type(parsed)]}; send an object such as {{"text": "…"}}')
    return parsed


def _explain(value: bytes, what: str, error: orjson.JSONDecodeError) -> NoReturn:
    """Which rule a value breaks that the parser refused."""
    utf8_text(value, what)
    if value.startswith(b"\xef\xbb\xbf"):
        raise EnvelopeError("bad_json", f"the {what} begins with a byte order mark; send UTF-8 without one") from error
    if "depth" in error.msg:
        raise EnvelopeError("json_too_deep", f"the {what} is nested more than 1,024 levels deep: {error.msg}") from error
    if "surrogate" in error.msg:
        raise EnvelopeError("lone_surrogate", f"the {what} escapes half of a surrogate pair: {error.msg}") from error
    raise EnvelopeError("bad_json", f"the {what} is not JSON: {error.msg}") from error


def utf8_text(data: bytes, what: str) -> str:
    """``data`` decoded; ``what`` names it in the message. Raises EnvelopeError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise EnvelopeError("not_utf8", f"the {what} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error


def _shown(data: bytes | None) -> str:
    return repr((data or b"")[:80].decode("utf-8", "replace"))


def _problems(error: ValidationError) -> str:
    """In one line, without the values: they may be somebody's prompt."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(str(part) for part in item['loc']) or 'data'}: {item['msg']}" for item in details[:5])
