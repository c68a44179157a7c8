"""Findings -> CloudEvents on the documents topic, and a count of each kind of finding.

A document that would make a record larger than ``formats.max_inline_bytes`` goes to the blob store (a file under the name of its SHA-256,
durable before its event is sent), and its event names it: Kafka takes 1 MB by default.

Invariant: each finding ends in exactly one of published (acknowledged by all replicas), too large, failed or skipped. One bad document
never stops the others; a broker that is gone stops everything, with an error. What is under way is bounded by MAX_PENDING_BYTES and
MAX_PENDING_RECORDS: beyond that the oldest acknowledgement is waited for.

Size is checked here, against the topic's ``max.message.bytes``, because the first refusal by the broker makes an idempotent kafka-python
producer (3.0.12) fail everything that follows. Where the broker does not tell its limit, the producer is not idempotent: a refusal then
concerns its own record only, and a lost connection may publish a record twice (with the same id, so that it is dropped as a duplicate).
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from kafka import KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from kafka.record.default_records import DefaultRecordBatchBuilder

from ops.producing.blobs import put_blob
from ops.producing.findings import Failed, Finding, Found, Skipped, TooLarge
from pipelines.kafka.clients import broker_errors, open_admin, open_producer
from pipelines.kafka.topics import ensure_topics, topic_names
from schemas.counting import counted
from schemas.envelope import KafkaRecord, encode
from schemas.errors import BrokerError, EnvelopeError
from schemas.events import DocumentReceived, Event, new_event
from schemas.settings import Settings

SOURCE = "/headrace/produce"
MAX_PENDING_BYTES = 64 * 2**20
MAX_PENDING_RECORDS = 10_000
BATCH_BYTES = 64 * 2**10
MAX_REASONS = 1_000
OTHER_REASONS = "other"


@dataclass
class PublishCounts:
    """What became of the findings."""

    published: int = 0
    """Documents that the broker acknowledged."""
    bytes: int = 0
    """Their record values' bytes."""
    too_large: list[TooLarge] = field(default_factory=list)
    """Documents larger than the topic, or ``kafka.max_request_bytes``, takes."""
    failed: list[Failed] = field(default_factory=list)
    """Files and records that could not be read."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files in folders and records of archives that are of no kind that is read, by what they are; rare kinds together."""
    blobs: int = 0
    """Documents, among those published, that were put into the blob store."""


class _Pending(NamedTuple):
    origin: str
    size_bytes: int
    acknowledgement: Any  # kafka-python's future


class Publisher:
    """Publishes findings one after the other; use it in a ``with`` block, and ``drain`` it before you trust the tally."""

    def __init__(self, settings: Settings, rate_limit: float | None = None, blobs: Path | None = None) -> None:
        """Connect and create the topics that are missing. Raises BrokerUnavailable.

        ``rate_limit`` is in documents per second; ``blobs`` is the blob store, ``<root>/blobs`` without it.
        """
        ensure_topics(settings)
        self.tally = PublishCounts()
        self.topic = topic_names(settings).documents
        self._settings = settings
        self._blobs = blobs
        self._limit_bytes = record_limit(settings, self.topic)
        self._producer = _open_for(settings, self._limit_bytes)
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._interval_s = 1 / rate_limit if rate_limit else 0.0
        self._next_send_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._producer.close(timeout=self._settings.kafka.request_timeout_s if error is None else 0)

    def add(self, finding: Finding) -> None:
        """Publish or count one finding; returns before the broker has acknowledged it. Raises BrokerUnavailable."""
        if isinstance(finding, Found):
            self._send(finding)
        elif isinstance(finding, TooLarge):
            self.tally.too_large.append(finding)
        elif isinstance(finding, Failed):
            self.tally.failed.append(finding)
        elif isinstance(finding, Skipped):
            counted = self.tally.skipped
            counted[finding.reason if finding.reason in counted or len(counted) < MAX_REASONS else OTHER_REASONS] += 1

    def drain(self) -> None:
        """Wait until everything so far is acknowledged or refused. Raises BrokerUnavailable."""
        while self._pending:
            self._settle_oldest()

    def _send(self, found: Found) -> None:
        try:
            record = encode(document_event(found.document), found.document.id)
        except EnvelopeError as error:
            self.tally.failed.append(Failed(found.origin, str(error)))
            return
        size_bytes = len(record.value or b"")
        if self._settings.formats.max_inline_bytes < size_bytes <= self._settings.formats.max_dataref_bytes:
            record = put_blob(record, self._settings, self._blobs)
            self.tally.blobs += 1
        if self._limit_bytes is not None and batch_bytes(record) > self._limit_bytes:
            self.tally.too_large.append(TooLarge(found.origin, size_bytes))
            return
        self._wait_for_turn()
        with broker_errors(self._settings.kafka, f"publish to {self.topic}"):
            try:
                acknowledgement = self._producer.send(self.topic, key=record.key, value=record.value, headers=record.headers)
            except MessageSizeTooLargeError:  # beyond kafka.max_request_bytes, where the topic's own limit is not known
                self.tally.too_large.append(TooLarge(found.origin, size_bytes))
                return
        self._pending.append(_Pending(found.origin, size_bytes, acknowledgement))
        self._pending_bytes += size_bytes
        while self._pending and (self._is_full() or self._pending[0].acknowledgement.is_done):
            self._settle_oldest()

    def _is_full(self) -> bool:
        return self._pending_bytes > MAX_PENDING_BYTES or len(self._pending) > MAX_PENDING_RECORDS

    def _settle_oldest(self) -> None:
        """Wait for the oldest acknowledgement, and count it."""
        origin, size_bytes, acknowledgement = self._pending.popleft()
        self._pending_bytes -= size_bytes
        with broker_errors(self._settings.kafka, f"publish to {self.topic} (after {counted(self.tally.published, 'document')})"):
            try:
                acknowledgement.get(timeout=self._settings.kafka.request_timeout_s)
            except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
                if self._limit_bytes is not None:
                    raise BrokerError(_limit_changed(self.topic, self._limit_bytes, self.tally.published)) from error
                self.tally.too_large.append(TooLarge(origin, size_bytes))
                return
        self.tally.published += 1
        self.tally.bytes += size_bytes

    def _wait_for_turn(self) -> None:
        """Keep to the rate limit; after a pause of the source, the time that was not used is not made up for."""
        if self._interval_s:
            pause_s = self._next_send_s - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            self._next_send_s = max(self._next_send_s, time.monotonic()) + self._interval_s


def record_limit(settings: Settings, topic: str) -> int | None:
    """Bytes of the largest record batch that the topic and ``kafka.max_request_bytes`` allow; None if the broker does not tell."""
    try:
        with open_admin(settings) as admin:
            described = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
        value = described["topic"][topic]["max.message.bytes"]["value"]
        return min(int(value), settings.kafka.max_request_bytes)
    except (KafkaError, KeyError, TypeError, ValueError):
        return None


def batch_bytes(record: KafkaRecord) -> int:
    """Bytes of the record in a batch of its own, uncompressed, which is what the broker compares with its limit."""
    return int(DefaultRecordBatchBuilder.HEADER_STRUCT.size + DefaultRecordBatchBuilder.size_in_bytes(0, 0, record.key, record.value, record.headers))


def _open_for(settings: Settings, limit_bytes: int | None) -> KafkaProducer:
    if limit_bytes is None:
        return open_producer(settings, enable_idempotence=False)
    # kafka-python's own size check rounds up by a few bytes; ours is exact.
    return open_producer(settings, batch_size=min(BATCH_BYTES, limit_bytes), max_request_size=limit_bytes + 1024)


def _limit_changed(topic: str, limit_bytes: int, num_published: int) -> str:
    return (
        f"the broker refused a record as too large, though topic {topic!r} takes batches of {limit_bytes:,} bytes; "
        f"has max.message.bytes been lowered? {num_published:,} documents were published; run the same command again, ids stay the same"
    )


def document_event(document: DocumentReceived) -> Event:
    """The document as an event. Its id follows from the document's id and text: sent twice, it is the same event; changed, another one."""
    digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return new_event(document, id=f"{document.id}@{digest}", source=SOURCE, time=datetime.now(UTC), subject=document.id)


def publish(settings: Settings, findings: Iterable[Finding], rate_limit: float | None = None) -> PublishCounts:
    """Publish all findings and wait for the broker. Raises BrokerUnavailable."""
    with Publisher(settings, rate_limit) as publisher:
        for finding in findings:
            publisher.add(finding)
        publisher.drain()
        return publisher.tally
