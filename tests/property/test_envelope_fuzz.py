"""Whatever the bytes, a record is a document, a retraction, or a named rule; and what was sent is what arrives."""

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.documents import Document, Retraction, decode_document
from schemas.envelope import RULES, Headers, decode_event, encode
from schemas.errors import EnvelopeError
from schemas.events import DocumentReceived, new_event
from schemas.headers import headers_from_arrow, headers_to_arrow

NOW = datetime(2026, 1, 31, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
FIELDS = ["format", "dataref", "datarefsha256", "id", "text", "url", "title", "lang", "domain", "license", "created_at", "meta"]
DOCUMENTS = st.dictionaries(st.sampled_from([*FIELDS, "extra", "specversion", "source", "type", "data"]), JSON)
VALUES = st.binary() | DOCUMENTS.map(lambda value: json.dumps(value).encode()) | JSON.map(lambda value: json.dumps(value).encode())
HEADER_NAMES = st.sampled_from(["ce_id", "ce_source", "ce_type", "ce_specversion", "CE_TIME", "content-type", "traceparent"]) | TEXT
HEADER_VALUES = (
    st.none()
    | st.binary()
    | st.sampled_from([b"1.0", b"document.received", b"application/json", b"application/cloudevents+json", b"text/html", b"text/plain; charset=gbk"])
)
HEADERS = st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=8)


@given(st.none() | st.binary(), st.none() | VALUES, HEADERS)
def test_any_record_is_a_value_or_a_named_rule(key: bytes | None, value: bytes | None, headers: Headers) -> None:
    try:
        result = decode_document(key, value, headers, "t", 0, 1, max_bytes=200)
    except EnvelopeError as error:
        assert error.rule in RULES
    else:
        assert isinstance(result, Document | Retraction)
        assert result.doc_id
        assert all(part.encode() is not None for part in result if isinstance(part, str))


@given(st.none() | VALUES, HEADERS)
def test_any_record_is_an_event_or_a_named_rule(value: bytes | None, headers: Headers) -> None:
    try:
        decode_event(value, headers)
    except EnvelopeError as error:
        assert error.rule in RULES


@given(st.integers(0, 5000), st.sampled_from(["[", '{"a":', '[{"a":']))
def test_any_depth_of_nesting_is_a_value_or_a_named_rule(depth: int, opening: str) -> None:
    closing = opening.replace("[", "]").replace('{"a":', "}")[::-1]
    value = f'{{"text": "hello", "meta": {{"a": {opening * depth}1{closing * depth}}}}}'.encode()
    try:
        assert decode_document(None, value, [], "t", 0, 1, max_bytes=10**6)
    except EnvelopeError as error:
        assert error.rule == "json_too_deep"


@given(
    st.fixed_dictionaries(
        {"text": TEXT.filter(lambda text: text != "" and not text.isspace())}, optional={"extra": JSON, "url": TEXT | st.integers()}
    )
)
def test_the_fast_path_and_the_model_accept_the_same_documents(value: dict[str, Any]) -> None:
    raw = json.dumps(value).encode()
    try:
        model: DocumentReceived | None = DocumentReceived.model_validate_json(raw)
    except ValidationError:
        model = None
    try:
        document = decode_document(None, raw, [], "t", 0, 1, max_bytes=10**6)
    except EnvelopeError as error:
        assert model is None or error.rule in ("bad_json", "lone_surrogate")  # NaN and half surrogates, which no JSON may hold
    else:
        assert isinstance(document, Document)
        assert model is not None
        assert (document.text, document.url) == (model.text, model.url)


@given(TEXT.filter(lambda text: text.strip() != "" and not text.isspace()), st.none() | TEXT)
def test_what_is_sent_is_what_arrives(text: str, title: str | None) -> None:
    event = new_event(DocumentReceived(id="a", text=text, title=title), id="1", source="/x", time=NOW, subject="a")
    record = encode(event)
    document = decode_document(record.key, record.value, record.headers, "t", 0, 1, max_bytes=10**6)
    assert isinstance(document, Document)
    assert (document.doc_id, document.text, document.title) == ("a", text, title)
    assert decode_event(record.value, record.headers) == event


@given(st.lists(st.none() | st.lists(st.tuples(TEXT, st.none() | st.binary()), max_size=4)), st.integers(0, 3))
def test_headers_survive_arrow_also_in_slices_and_chunks(rows: list[list[tuple[str, bytes | None]] | None], start: int) -> None:
    array = headers_to_arrow(rows)
    assert array.is_null().to_pylist() == [row is None for row in rows]
    assert headers_from_arrow(array) == [row or [] for row in rows]
    assert headers_from_arrow(pa.chunked_array([array.slice(start), array])) == [row or [] for row in rows[start:] + rows]
