"""Headers that are checked as columns give the verdicts of headers that are read one by one."""

import json
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.steps import decode as decoding
from pipelines.steps.formats.attributes import KnownEvents, known_events
from schemas.arrow import HEADERS, RECORDS
from schemas.headers import BAD_NAME, BROKEN_RECORD
from schemas.settings import Settings
from tests.property.test_steps_decode import BINARY, CONTENT_TYPES, PAGE, REFERENCE

Pairs = list[tuple[str, bytes | None]]
SETTINGS = Settings.model_validate({"root": "/nonexistent-headrace", "ingest": {"max_document_bytes": 2048}})
EVENT: Pairs = [*BINARY, ("ce_subject", b"s"), ("content-type", b"application/json"), ("traceparent", b"00-0-0-00")]
VALUES = [
    json.dumps({"text": "water 水"}).encode(),
    json.dumps({"id": "own", "source": "own", "text": "x", "lang": "en", "format": "auto"}).encode(),
    json.dumps({"text": PAGE, "format": "html", "url": "https://a.example/x"}).encode(),
    json.dumps({"id": "x" * 2000, "text": "x"}).encode(),
    json.dumps({"id": 7, "text": "x"}).encode(),
    b'{"text": " "}',
    b"{}",
    b"[]",
    b"{",
    b"\xff",
    b"x" * 2049,
    None,
]
TIMES = [b"2026-12-31T23:59:59Z", b"2024-02-29T00:00:00Z", b"2026-02-29T00:00:00Z", b"2026-01-31T12:00:00", b"2026-01-31", b"1", b""]
ODD = [None, b"", b"\xff", b"1.0", b"document.retracted", b"x" * 1100, b"\n", *CONTENT_TYPES, *TIMES, b"application/json; charset=gbk"]
NAMES = [name for name, _ in [*EVENT, *REFERENCE]] + ["CE_ID", "Content-Type", "x", BROKEN_RECORD, f"{BAD_NAME}x", "headrace_replay_of"]


@st.composite
def events(draw: st.DrawFn) -> Pairs | None:
    """Mostly the same headers; sometimes one is another, lost, twice, or elsewhere."""
    pairs = list(EVENT)
    kind = draw(st.sampled_from(["same"] * 6 + ["id", "id", "value", "value", "name", "lost", "added", "order", "none", "null"]))
    at = draw(st.integers(0, len(pairs) - 1))
    match kind:
        case "id":
            pairs[0] = ("ce_id", draw(st.text(min_size=1, max_size=3)).encode())
        case "value":
            pairs[at] = (pairs[at][0], draw(st.sampled_from(ODD)))
        case "name":
            pairs[at] = (draw(st.sampled_from(NAMES)), pairs[at][1])
        case "lost":
            del pairs[at]
        case "added":
            pairs.insert(at, (draw(st.sampled_from(NAMES)), draw(st.sampled_from(ODD))))
        case "order":
            pairs.insert(0, pairs.pop(at))
        case "none":
            return []
        case "null":
            return None
    return pairs


ROWS = st.lists(st.tuples(st.sampled_from([None, b"k", b"\xff", b""]), st.sampled_from(VALUES[:3] * 3 + VALUES), events()), max_size=12)


def table_of(rows: list[tuple[bytes | None, bytes | None, Pairs | None]]) -> pa.Table:
    base: dict[str, Any] = {"topic": "t", "partition": 0, "timestamp_ms": None, "is_control": False}
    named = [None if pairs is None else [{"key": name, "value": value} for name, value in pairs] for _, _, pairs in rows]
    given = [base | {"offset": at, "key": key, "value": value, "headers": named[at]} for at, (key, value, _) in enumerate(rows)]
    return pa.Table.from_pylist(given, schema=RECORDS)


def nothing_known(headers: pa.ListArray) -> KnownEvents:
    unknown = np.full(len(headers), None, dtype=object)
    return KnownEvents(unknown, unknown)


def check(table: pa.Table) -> None:
    found = decoding.decode(table, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "known_events", nothing_known)
        assert found.to_pylist() == decoding.decode(table, SETTINGS).to_pylist()


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 3))
def test_columns_give_the_verdicts_that_single_headers_give(rows: list[tuple[bytes | None, bytes | None, Pairs | None]], first: int) -> None:
    check(table_of(rows).slice(first))


def test_every_single_edit_gives_the_same_verdict_too() -> None:
    changed = [[*EVENT[:at], (EVENT[at][0], value), *EVENT[at + 1 :]] for at in range(len(EVENT)) for value in ODD]
    added = [[*EVENT, (name, value)] for name in NAMES for value in ODD[:8]]
    lost = [[*EVENT[:at], *EVENT[at + 1 :]] for at in range(len(EVENT))]
    for pairs in changed + added + lost:
        check(table_of([(None, VALUES[0], pairs), (None, VALUES[0], EVENT)]))


def test_usual_events_are_all_known() -> None:
    shapes = [EVENT, EVENT[:4], [("CE_Source", b"/y"), *[pair for pair in EVENT if pair[0] != "ce_source"]], []]
    headers = pa.array([[{"key": name, "value": value} for name, value in shape] for shape in shapes] * 3, HEADERS)
    assert known_events(headers).sources.tolist() == ["/x", "/x", "/y", None] * 3
    assert known_events(headers.slice(1, 5)).ids.tolist() == ["1", "1", None, "1", "1"]


@given(st.datetimes(), st.sampled_from(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%f+08:00", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S.%f"]), st.data())
def test_times_that_are_known_can_be_read(moment: datetime, form: str, data: st.DataObject) -> None:
    text = moment.strftime(form)
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + data.draw(st.text(st.sampled_from("0123456789-:.TZ+\n ٣"), max_size=2)) + text[at + data.draw(st.integers(0, 2)) :]
    pairs = [{"key": name, "value": text.encode() if name == "ce_time" else value} for name, value in EVENT]
    if known_events(pa.array([pairs], HEADERS)).sources[0] is not None:
        assert datetime.fromisoformat(text).tzinfo is not None
