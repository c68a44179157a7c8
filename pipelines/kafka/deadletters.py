"""Dead letters: records that cannot be read as documents, published to a topic of their own with the reason.

A dead letter is the original value and headers, under the key ``topic/partition/offset``, followed by our headers (OURS below). Key and
id follow from where the record stood, so publishing twice (a crash between this and the commit) gives two equal letters, and a reader
that goes by key sees one. Every letter is acknowledged by all replicas before ``publish_dead_letters`` returns.
A record that the topic does not take because of its size is published without its value: its place in the log is named all the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from kafka import KafkaProducer
from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from pipelines.kafka.clients import broker_errors, open_producer
from pipelines.kafka.sizes import size_of
from pipelines.kafka.topics import topic_names
from schemas.envelope import RULES, Headers
from schemas.headers import headers_from_arrow
from schemas.settings import Settings

FIRST_HEADER = "headrace_error"
"""Begins our headers; those before its last occurrence are the original's."""
WINDOW_BYTES = 16 * 2**20
"""Acknowledgements are awaited whenever this much is on its way, which bounds memory."""
_COLUMNS = ["topic", "partition", "offset", "reason", "error", "key", "value", "headers"]
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class DeadLetter(NamedTuple):
    """A record of the dead-letter topic."""

    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]


def publish_dead_letters(settings: Settings, rows: pa.Table) -> int:
    """Publish the rows (schemas.arrow.prepared, outcome dead) and wait for every acknowledgement; returns how many there were.

    Raises BrokerUnavailable if one is not acknowledged: then nothing may be committed.
    """
    if not rows.num_rows:
        return 0
    topic = topic_names(settings).deadletter
    with broker_errors(settings.kafka, f"publish to {topic}"), open_producer(settings, enable_idempotence=False) as producer:
        for window in _windows(_letters(rows)):
            _publish_window(producer, topic, window)
    return int(rows.num_rows)


def original(value: bytes | None, headers: Headers) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Key, value and headers of the record that became this dead letter. Headers that were null come back empty."""
    last = max((position for position, (name, _) in enumerate(headers) if name == FIRST_HEADER), default=len(headers))
    ours = dict(headers[last:])
    return ours.get("headrace_key"), value, list(headers[:last])


def _letters(rows: pa.Table) -> Iterator[DeadLetter]:
    for batch in rows.select(_COLUMNS).to_batches(max_chunksize=256):
        all_headers = headers_from_arrow(batch.column("headers"))
        for row, headers in zip(batch.drop_columns(["headers"]).to_pylist(), all_headers, strict=True):
            yield _letter(row, headers)


def _letter(row: Mapping[str, Any], headers: Headers) -> DeadLetter:
    place = f"{row['topic']}/{row['partition']}/{row['offset']}"
    ours = {
        FIRST_HEADER: f"{row['reason']}: {row['error']}",
        "headrace_rule": row["reason"],
        "headrace_stage": "decode" if row["reason"] in RULES else "prepare",
        "headrace_topic": row["topic"],
        "headrace_partition": str(row["partition"]),
        "headrace_offset": str(row["offset"]),
    }
    added = [(name, text.encode()) for name, text in ours.items()]
    if row["key"] is not None:
        added.append(("headrace_key", row["key"]))
    if not any(name.lower() == "ce_id" for name, _ in headers):
        added.append(("ce_id", place.encode()))
    kept = [(name, value or b"") for name, value in headers]  # kafka-python sends no null header values
    return DeadLetter(place.encode(), row["value"], kept + added)


def _windows(letters: Iterator[DeadLetter]) -> Iterator[list[DeadLetter]]:
    window: list[DeadLetter] = []
    size_bytes = 0
    for letter in letters:
        window.append(letter)
        size_bytes += size_of(letter.key, letter.value, letter.headers)
        if size_bytes >= WINDOW_BYTES:
            yield window
            window, size_bytes = [], 0
    if window:
        yield window


def _publish_window(producer: KafkaProducer, topic: str, window: list[DeadLetter]) -> None:
    futures = [producer.send(topic, key=letter.key, value=letter.value, headers=letter.headers) for letter in window]
    producer.flush()
    for letter, future in zip(window, futures, strict=True):
        try:
            future.get()
        except _TOO_LARGE:
            _publish_without_value(producer, topic, letter)


def _publish_without_value(producer: KafkaProducer, topic: str, letter: DeadLetter) -> None:
    """The value stays where it was; the letter says how large it is."""
    omitted = ("headrace_value_omitted", str(len(letter.value or b"")).encode())
    own = [pair for pair in letter.headers if pair[0].startswith("headrace_")]
    try:
        producer.send(topic, key=letter.key, value=b"", headers=[*letter.headers, omitted]).get()
    except _TOO_LARGE:  # headers that are themselves too large
        producer.send(topic, key=letter.key, value=b"", headers=[*own, omitted]).get()
