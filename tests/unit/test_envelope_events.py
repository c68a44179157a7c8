"""Events on the wire: binary and structured mode, and what is refused."""

import json
from datetime import UTC, datetime

import pytest

from schemas.envelope import decode_event, encode
from schemas.errors import EnvelopeError
from schemas.events import AlertFired, DocumentReceived, Event, new_event

EVENT: Event = new_event(
    AlertFired(name="lag", severity="warning", summary="the reader is 5,000 records behind"),
    id="1",
    source="/headrace/ingest",
    time=datetime(2026, 1, 31, 12, 0, tzinfo=UTC),
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)


def rule_of(value: bytes | None, headers: list[tuple[str, bytes | None]]) -> str:
    with pytest.raises(EnvelopeError) as caught:
        decode_event(value, headers)
    return caught.value.rule


def test_binary_mode_gives_back_the_event() -> None:
    record = encode(EVENT, key="lag")
    assert record.key == b"lag"
    assert decode_event(record.value, record.headers) == EVENT


def test_structured_mode_gives_back_the_event() -> None:
    body = EVENT.model_dump(mode="json", exclude_none=True) | {"specversion": "1.0", "datacontenttype": "application/json"}
    assert decode_event(json.dumps(body).encode(), [("content-type", b"application/cloudevents+json")]) == EVENT


def test_a_malformed_traceparent_is_dropped_not_refused() -> None:
    record = encode(EVENT)
    headers = [pair for pair in record.headers if pair[0] != "traceparent"] + [("traceparent", b"\xff garbage")]
    assert decode_event(record.value, headers).traceparent is None


def test_events_that_are_none_name_their_rule() -> None:
    record = encode(EVENT)
    headers: list[tuple[str, bytes | None]] = list(record.headers)
    without_time = [pair for pair in headers if pair[0] != "ce_time"]
    assert rule_of(None, headers) == "not_an_object"
    assert rule_of(record.value, []) == "missing_attribute"
    assert rule_of(record.value, without_time) == "missing_attribute"
    assert rule_of(b"{}", headers) == "bad_data"
    assert rule_of(record.value, [*headers, ("ce_type", b"alert.extinguished")]) == "wrong_event_type"


def test_text_that_has_no_utf8_form_is_refused_when_it_is_sent() -> None:
    event = new_event(DocumentReceived(text="half \ud83d"), id="1", source="/x", time=EVENT.time)
    with pytest.raises(EnvelopeError) as caught:
        encode(event)
    assert caught.value.rule == "lone_surrogate"
