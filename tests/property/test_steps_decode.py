"""Whatever is in a record, decoding answers with a document, a retraction, a rejection or a dead letter, and never with an exception."""

import json
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.steps.decode import NO_CONTENT, SCHEMA, decode
from schemas.arrow import RECORDS
from schemas.envelope import RULES
from schemas.headers import BAD_NAME, BROKEN_RECORD
from schemas.settings import Settings

SETTINGS = Settings.model_validate({"root": "/nonexistent-headrace", "ingest": {"max_document_bytes": 2048}})
CONTENT_TYPES = [
    b"application/json",
    b"application/cloudevents+json",
    b"text/html",
    b"text/html; charset=gbk",
    b"text/plain;charset=utf-16",
    b"text/csv",
]
PAGE = "<html><head><meta charset=gbk><title>水</title></head><body><nav>a</nav><p>The mill 水从山上流下来 turns.</body></html>"
BINARY: list[tuple[str, bytes | None]] = [
    ("ce_id", b"1"),
    ("ce_source", b"/x"),
    ("ce_specversion", b"1.0"),
    ("ce_type", b"document.received"),
    ("ce_time", b"2026-01-31T12:00:00Z"),
]
REFERENCE: list[tuple[str, bytes | None]] = [("ce_dataref", b"blobs/" + b"0" * 64), ("ce_datarefsize", b"5")]
STRUCTURED = {"id": "1", "source": "/x", "specversion": "1.0", "type": "document.received", "datacontenttype": "text/html", "data": PAGE}
SEEDS: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = [
    (b"k", json.dumps({"id": "a", "text": "水 mill", "lang": "en", "meta": {"a": [1]}}).encode(), []),
    (None, json.dumps({"text": PAGE, "format": "auto", "url": "https://u@a.example:1/x"}).encode(), []),
    (None, json.dumps({"text": PAGE, "format": "html"}).encode(), BINARY),
    (None, json.dumps({"id": "a", "dataref": "blobs/a%20b", "datarefsha256": "0" * 64, "datarefsize": 3}).encode(), []),
    (None, PAGE.encode("gbk"), [*BINARY, ("content-type", b"text/html; charset=gb2312")]),
    (None, PAGE.encode("utf-16"), [("content-type", b"text/plain")]),
    (b"k", b"", [*BINARY, *REFERENCE]),
    (b"gone", None, []),
    (b"k", json.dumps({"id": "gone"}).encode(), [*BINARY[:3], ("ce_type", b"document.retracted"), ("headrace_replay", b"t/0/1")]),
    (None, json.dumps(STRUCTURED).encode(), [("content-type", b"application/cloudevents+json")]),
    (None, b"found bytes", [(BROKEN_RECORD, None)]),
    (None, b"{}", [(f"{BAD_NAME}\\xff", None)]),
]


def check(records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None, bool]]) -> None:
    table = pa.table(
        {
            "topic": pa.array(["t"] * len(records), pa.string()),
            "partition": pa.array([0] * len(records), pa.int32()),
            "offset": pa.array(range(len(records)), pa.int64()),
            "timestamp_ms": pa.nulls(len(records), pa.int64()),
            "is_control": pa.array([is_control for *_, is_control in records], pa.bool_()),
            "key": pa.array([key for key, *_ in records], pa.large_binary()),
            "value": pa.array([value for _, value, *_ in records], pa.large_binary()),
            "headers": pa.array(
                [None if pairs is None else [{"key": name, "value": value} for name, value in pairs] for _, _, pairs, _ in records],
                RECORDS.field("headers").type,
            ),
        },
        schema=RECORDS,
    )
    out = decode(table, SETTINGS)
    out.validate(full=True)
    assert out.schema.equals(SCHEMA)
    assert len(out) == len(records)
    for row, (*_, is_control) in zip(out.to_pylist(), records, strict=True):
        check_row(row, is_control)


def check_row(row: dict[str, Any], is_control: bool) -> None:
    assert (row["outcome"] == "control") == is_control
    match row["outcome"]:
        case None:
            assert row["doc_id"] and row["text"] and not row["text"].isspace()
        case "dead":
            assert row["reason"] in RULES and row["error"] and row["text"] is None
        case "rejected":
            assert row["reason"] == NO_CONTENT and row["doc_id"]
        case outcome:
            assert outcome in ("retracted", "control") and row["text"] is None


def mutated(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            found[at:at] = rng.choice([b"\xff", b"\x00", b'"', b"{", b"\\ud800", b"<", b"\xe6", b"%00", b"<div>" * 40, b"\n"])
        elif kind == 1:
            del found[at : at + rng.randrange(1, 9)]
        elif kind == 2 and found:
            found[min(at, len(found) - 1)] = rng.randrange(256)
        elif kind == 3:
            found[at:at] = found[at : at + 20]
        else:
            found[at:at] = rng.randbytes(3)
    return bytes(found)


def mutant(rng: random.Random) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None, bool]:
    key, value, headers = rng.choice(SEEDS)
    pairs: list[tuple[str, bytes | None]] = []
    for name, text in headers:
        kind = rng.random()
        if kind < 0.1:
            continue
        pairs.append(
            (mutated(name.encode(), rng).decode("utf-8", "replace") if kind < 0.15 else name, mutated(text or b"", rng) if kind < 0.4 else text)
        )
    if rng.random() < 0.2:
        pairs.append(("content-type", rng.choice([*CONTENT_TYPES, None, b"\xff"])))
    value = mutated(value, rng) if value is not None and rng.random() < 0.8 else value
    key = mutated(key, rng) if key is not None and rng.random() < 0.3 else key
    return key, None if rng.random() < 0.02 else value, None if rng.random() < 0.02 else pairs, rng.random() < 0.02


def fuzz(number: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(number // 100):
        check([mutant(rng) for _ in range(100)])


def test_mutated_records_never_raise() -> None:
    fuzz(3_000, seed=1)


@pytest.mark.slow
def test_very_many_mutated_records_never_raise() -> None:
    fuzz(30_000, seed=2)


HEADER_NAMES = st.sampled_from([name for name, _ in [*BINARY, *REFERENCE]] + ["content-type", "traceparent", BROKEN_RECORD]) | st.text(max_size=5)
HEADER_VALUES = st.none() | st.binary(max_size=8) | st.sampled_from([*CONTENT_TYPES, *(value for _, value in [*BINARY, *REFERENCE])])
VALUES = st.none() | st.binary() | st.sampled_from([value for _, value, _ in SEEDS]) | st.binary(min_size=2040, max_size=2060)
PAIRS = st.none() | st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.none() | st.binary(max_size=8), VALUES, PAIRS, st.sampled_from([False] * 9 + [True])), max_size=4))
def test_any_record_gets_one_verdict(records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None, bool]]) -> None:
    check(records)
