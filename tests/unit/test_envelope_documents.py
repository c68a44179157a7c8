"""Documents as they come in: which records are accepted, what they are called, and which rule each bad one breaks."""

import base64
import json

import pytest

from schemas.documents import Document, Retraction, decode_document
from schemas.envelope import RULES, Headers
from schemas.errors import EnvelopeError

CLOUDEVENT: list[tuple[str, bytes | None]] = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e-1"),
    ("ce_source", b"/crawler"),
    ("ce_type", b"document.received"),
    ("ce_time", b"2026-01-31T12:00:00Z"),
    ("content-type", b"application/json"),
]
STRUCTURED: list[tuple[str, bytes | None]] = [("content-type", b"application/cloudevents+json; charset=utf-8")]
PLAIN = b'{"text": "A water wheel turns."}'
EVENT = {"specversion": "1.0", "id": "e-1", "source": "/crawler", "type": "document.received", "data": {"text": "hello"}}


def decode(value: bytes | None, headers: Headers = (), key: bytes | None = None, max_bytes: int = 10_000) -> Document | Retraction:
    return decode_document(key, value, headers, "t.documents", 3, 42, max_bytes=max_bytes)


def rule_of(value: bytes | None, headers: Headers = (), key: bytes | None = None, max_bytes: int = 10_000) -> str:
    with pytest.raises(EnvelopeError) as caught:
        decode(value, headers, key, max_bytes)
    assert caught.value.rule in RULES
    assert len(str(caught.value)) < 400
    return caught.value.rule


def with_header(name: str, value: bytes | None) -> Headers:
    return [pair for pair in CLOUDEVENT if pair[0] != name] + ([(name, value)] if value is not None else [])


def structured(**changes: object) -> bytes:
    return json.dumps({name: value for name, value in (EVENT | changes).items() if value is not None}).encode()


def test_plain_json_is_a_document_with_all_its_fields() -> None:
    value = {
        "id": "wiki/水车",
        "text": "水车",
        "url": "u",
        "title": "t",
        "lang": "zh",
        "domain": "d",
        "license": "l",
        "created_at": "c",
        "source": "s",
        "meta": {"a": 1},
    }
    assert decode(json.dumps(value).encode()) == Document("wiki/水车", "水车", "u", "t", "zh", "d", "l", "c", "s", meta={"a": 1})


def test_unknown_keys_and_nulls_of_other_producers_do_no_harm() -> None:
    assert decode(b'{"text": "hello", "score": [1, 2], "url": null, "id": null, "meta": null}') == decode(b'{"text": "hello"}')


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"application/json; charset=utf-8", b'Application/JSON;Charset="UTF-8"', b"text/json", b""]
)
def test_plain_json_may_say_that_it_is_json(content_type: bytes) -> None:
    assert decode(PLAIN, [("Content-Type", content_type)]) == decode(PLAIN)


def test_binary_mode_is_read_whatever_the_case_of_header_names() -> None:
    headers = [(name.upper(), value) for name, value in CLOUDEVENT]
    assert decode(b'{"id": "a", "text": "hello"}', headers) == Document("a", "hello", None, None, None, None, None, None, "/crawler")


def test_structured_mode_is_read_with_object_and_with_base64_data() -> None:
    expected = decode(b'{"text": "hello"}', CLOUDEVENT)
    assert decode(structured(), STRUCTURED) == expected
    encoded = base64.b64encode(b'{"text": "hello"}').decode()
    assert decode(structured(data=None, data_base64=encoded, datacontenttype="application/json"), STRUCTURED) == expected


def test_of_a_repeated_header_the_last_one_counts() -> None:
    assert decode(PLAIN, [("ce_specversion", b"0.3"), *CLOUDEVENT]) == decode(PLAIN, CLOUDEVENT)
    assert rule_of(PLAIN, [*CLOUDEVENT, ("ce_specversion", b"0.3")]) == "wrong_specversion"


@pytest.mark.parametrize(
    ("key", "headers", "doc_id"),
    [
        (b"k-1", CLOUDEVENT, "k-1"),
        ("水车".encode(), [], "水车"),
        (None, CLOUDEVENT, "/crawler#e-1"),
        (b"\xff\x00", CLOUDEVENT, "/crawler#e-1"),
        (b"", [], "t.documents/3/42"),
        (b"line\nbreak", [], "t.documents/3/42"),
        (None, [], "t.documents/3/42"),
    ],
)
def test_a_document_without_an_id_is_named_by_its_key_its_event_or_its_place(key: bytes | None, headers: Headers, doc_id: str) -> None:
    document = decode(PLAIN, headers, key)
    assert document.doc_id == doc_id
    assert document == decode(PLAIN, headers, key)


def test_its_own_id_beats_every_other_name() -> None:
    assert decode(b'{"id": "own", "text": "hello"}', CLOUDEVENT, b"k-1").doc_id == "own"


def test_a_null_value_retracts_what_its_key_names() -> None:
    assert decode(None, key="水车".encode()) == Retraction("水车")
    assert decode(None, CLOUDEVENT, b"k-1") == Retraction("k-1")
    assert decode(PLAIN, key=b"k-1").doc_id == decode(None, key=b"k-1").doc_id


def test_a_retraction_event_retracts_what_its_data_names() -> None:
    assert decode(b'{"id": "a", "reason": "asked"}', with_header("ce_type", b"document.retracted"), b"k") == Retraction("a")


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (b"", "bad_json"),
        (b"hello", "bad_json"),
        (b'{"text": "hello"', "bad_json"),
        (b'{"text": "hello"} {}', "bad_json"),
        (b'{"text": "hel\x00lo"}', "bad_json"),
        (b'\xef\xbb\xbf{"text": "hello"}', "bad_json"),
        (b'{"text": "hello", "meta": {"a": NaN}}', "bad_json"),
        (b'{"text": "hello", "meta": {"a": ' + b"9" * 5000 + b"}}", "bad_json"),
        (b"\xff\xfe{\x00", "not_utf8"),
        (b'{"text": "hel\xfflo"}', "not_utf8"),
        (b'{"text": "\xed\xa0\x80"}', "not_utf8"),
        (b'{"text": "\\ud800"}', "lone_surrogate"),
        (b'{"text": "a", "\\udc00": 1}', "lone_surrogate"),
        (b'{"text": "\\ud83d\\u0041"}', "lone_surrogate"),
        (b'{"text": "a", "meta": ' + b"[" * 2000 + b"]" * 2000 + b"}", "json_too_deep"),
        (b"[" * 9000, "json_too_deep"),
        (b'"hello"', "not_an_object"),
        (b"12", "not_an_object"),
        (b'[{"text": "hello"}]', "not_an_object"),
        (b"null", "not_an_object"),
        (b"{}", "missing_text"),
        (b'{"Text": "hello"}', "missing_text"),
        (b'{"text": null}', "wrong_type"),
        (b'{"text": 12}', "wrong_type"),
        (b'{"text": ["hello"]}', "wrong_type"),
        (b'{"text": "hello", "url": 1}', "wrong_type"),
        (b'{"text": "hello", "meta": "x"}', "wrong_type"),
        (b'{"text": "hello", "id": 7}', "wrong_type"),
        (b'{"text": ""}', "empty_text"),
        ('{"text": " \\n\\t　"}'.encode(), "empty_text"),
        (b'{"text": "hello", "id": ""}', "bad_id"),
        (b'{"text": "hello", "id": "a\\u0000b"}', "bad_id"),
        (b'{"text": "hello", "id": "' + b"x" * 1025 + b'"}', "bad_id"),
        (b'{"text": "' + b"x" * 10_000 + b'"}', "too_large"),
    ],
)
def test_each_bad_value_breaks_its_rule(value: bytes, rule: str) -> None:
    assert rule_of(value) == rule
    if rule != "bad_json":
        assert rule_of(value, CLOUDEVENT) == rule


@pytest.mark.parametrize(
    ("headers", "rule"),
    [
        (with_header("ce_specversion", b"0.3"), "wrong_specversion"),
        (with_header("ce_specversion", None), "missing_attribute"),
        (with_header("ce_id", b""), "missing_attribute"),
        (with_header("ce_source", None), "missing_attribute"),
        (with_header("ce_type", None), "missing_attribute"),
        ([("ce_id", None)], "missing_attribute"),
        (with_header("ce_type", b"model.registered"), "wrong_event_type"),
        (with_header("ce_type", b"com.example.clicked"), "wrong_event_type"),
        (with_header("ce_time", b"yesterday"), "bad_attribute"),
        (with_header("ce_time", b"2026-01-31T12:00:00"), "bad_attribute"),
        (with_header("ce_id", b"\xff"), "not_utf8"),
        (with_header("content-type", b"application/avro"), "unknown_content_type"),
        (with_header("content-type", b"application/json; charset=gbk"), "unknown_content_type"),
        (with_header("content-type", b"application/cloudevents-batch+json"), "unknown_content_type"),
        (with_header("content-type", b"\xff\xfe"), "unknown_content_type"),
        ([("content-type", b"text/csv")], "unknown_content_type"),
    ],
)
def test_each_bad_header_breaks_its_rule(headers: Headers, rule: str) -> None:
    assert rule_of(PLAIN, headers) == rule


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (structured(specversion="0.3"), "wrong_specversion"),
        (structured(id=None), "missing_attribute"),
        (structured(id=7), "bad_attribute"),
        (structured(time="soon"), "bad_attribute"),
        (structured(type="training.started"), "wrong_event_type"),
        (structured(data=None), "not_an_object"),
        (structured(data="hello"), "not_an_object"),
        (structured(datacontenttype="text/csv", data="hello"), "unknown_content_type"),
        (structured(data=None, data_base64="!"), "bad_attribute"),
        (structured(data_base64="eyJ0ZXh0IjogImhlbGxvIn0="), "bad_attribute"),
        (structured(data=None, data_base64="水"), "bad_attribute"),
        (structured(data=None, data_base64="aGVsbG8="), "bad_json"),
        (b"[]", "not_an_object"),
    ],
)
def test_each_bad_structured_event_breaks_its_rule(value: bytes, rule: str) -> None:
    assert rule_of(value, STRUCTURED) == rule


@pytest.mark.parametrize(("key", "rule"), [(None, "null_without_key"), (b"", "null_without_key"), (b"\xff", "not_utf8"), (b"a\nb", "bad_id")])
def test_a_null_value_needs_a_key_that_can_name_a_document(key: bytes | None, rule: str) -> None:
    assert rule_of(None, CLOUDEVENT, key) == rule


def test_a_structured_event_without_its_content_type_is_told_what_it_looks_like() -> None:
    with pytest.raises(EnvelopeError, match="structured mode, which needs content-type: application/cloudevents\\+json") as caught:
        decode(structured())
    assert caught.value.rule == "missing_text"
    with pytest.raises(EnvelopeError, match="looks like a conversation"):
        decode(b'{"messages": []}')


@pytest.mark.parametrize("content_type", [b"charset=gbk", b"; charset=GBK", b' ;charset="gbk"'])
def test_a_content_type_that_names_a_character_set_only_is_a_page_or_a_text_in_it(content_type: bytes) -> None:
    found = decode("水从山上流下来".encode("gbk"), [("content-type", content_type)])
    assert isinstance(found, Document)
    assert found.raw is not None
    assert (found.format, found.raw.charset, bytes(found.raw.data).decode("gbk")) == ("auto", "gbk", "水从山上流下来")


def test_a_content_type_that_names_utf8_only_is_json_as_without_one() -> None:
    found = decode(PLAIN, [("content-type", b"charset=utf-8")])
    assert isinstance(found, Document)
    assert found.text
    for content_type in (b"charset=", b";", b"boundary=x"):
        assert rule_of(PLAIN, [("content-type", content_type)]) == "unknown_content_type"


def test_messages_do_not_repeat_the_document() -> None:
    with pytest.raises(EnvelopeError) as caught:
        decode(b'{"text": "a secret sentence", "url": 5}')
    assert "secret" not in str(caught.value)
