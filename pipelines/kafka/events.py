"""Events out and in.

Out: ``EventProducer.publish`` is called from request handlers, so it never waits and never fails. A thread owns the Kafka client;
at most MAX_PENDING events wait or are on their way, those beyond are counted in ``dropped`` and gone. Events inform; nothing that must
not be lost may depend on them.
In: ``EventReader`` reads a topic from given positions, in order within each partition. Records that are no events are counted and passed over.
"""

import logging
import queue
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from pipelines.kafka.clients import broker_errors, open_consumer, open_producer
from pipelines.kafka.topics import missing, topic_names
from schemas.envelope import KafkaRecord, decode_event, encode
from schemas.errors import BrokerUnavailable, EnvelopeError
from schemas.events import Event
from schemas.settings import Settings

MAX_PENDING = 10_000
"""Events that wait or are on their way, about 10 MB."""
CLOSE_TIMEOUT_S = 5.0
RECONNECT_PAUSE_S = 1.0
_log = logging.getLogger(__name__)


class EventProducer:
    """Publishes events in the background; use it in a ``with`` block, which waits up to CLOSE_TIMEOUT_S for the last ones."""

    def __init__(self, settings: Settings, max_pending: int = MAX_PENDING) -> None:
        self.dropped = 0
        """Events that were not published: too many waited, or the broker did not take them."""
        self._settings = settings
        self._topics = topic_names(settings)
        self._max_pending = max_pending
        self._pending = 0
        self._settled = threading.Condition()
        self._queue: queue.SimpleQueue[tuple[str, KafkaRecord] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.flush(CLOSE_TIMEOUT_S)
        self._closing.set()
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def publish(self, event: Event, *, topic: Literal["events", "inference"], key: str | None = None) -> None:
        """Hand the event over and return at once, whatever the broker does."""
        with self._settled:
            if self._pending >= self._max_pending:
                self.dropped += 1
                return
            self._pending += 1
        try:
            self._queue.put((getattr(self._topics, topic), encode(event, key)))
        except EnvelopeError:
            self._settle(was_published=False)

    def flush(self, timeout_s: float) -> bool:
        """Wait until every event so far is published or dropped; False if that took longer than ``timeout_s``."""
        with self._settled:
            return self._settled.wait_for(lambda: self._pending == 0, timeout_s)

    def _settle(self, *, was_published: bool) -> None:
        with self._settled:
            self._pending -= 1
            self.dropped += not was_published
            self._settled.notify_all()

    def _run(self) -> None:
        producer = self._connect()
        while (item := self._queue.get()) is not None:
            if producer is None or self._closing.is_set():
                self._settle(was_published=False)
            else:
                self._send(producer, *item)
        if producer is not None:
            producer.close(timeout=CLOSE_TIMEOUT_S)

    def _connect(self) -> KafkaProducer | None:
        """Try until it works or the block ends; events wait in the meantime."""
        while not self._closing.is_set():
            try:
                return open_producer(self._settings, enable_idempotence=False)
            except BrokerUnavailable as error:
                _log.warning("events wait: %s", error)
                self._closing.wait(RECONNECT_PAUSE_S)
        return None

    def _send(self, producer: KafkaProducer, topic: str, record: KafkaRecord) -> None:
        try:
            future = producer.send(topic, key=record.key, value=record.value, headers=record.headers)
        except KafkaError as error:
            self._failed(error)
            return
        future.add_callback(self._published)
        future.add_errback(self._failed)

    def _published(self, _: Any) -> None:
        self._settle(was_published=True)

    def _failed(self, error: BaseException) -> None:
        _log.warning("an event was dropped: %s", error)
        self._settle(was_published=False)


class EventReader:
    """Events of one topic from given positions on; use it in a ``with`` block."""

    def __init__(self, settings: Settings, topic: str, consumer: KafkaConsumer, partitions: list[int]) -> None:
        self.skipped = 0
        """Records that were no events."""
        self._settings = settings
        self._topic = topic
        self._consumer = consumer
        self._partitions = partitions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def poll(self, timeout_s: float) -> list[Event]:
        """What has come since the last call; waits up to ``timeout_s`` for the first. Raises BrokerUnavailable."""
        with broker_errors(self._settings.kafka, f"read {self._topic}"):
            batches = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        records = [record for _, batch in sorted(batches.items()) for record in batch]
        return [event for record in records if (event := self._decode(record)) is not None]

    def positions(self) -> dict[int, int]:
        """partition -> offset of the next record; give it to ``read_events`` to go on from here."""
        with broker_errors(self._settings.kafka, f"read {self._topic}"):
            return {partition: self._consumer.position(TopicPartition(self._topic, partition)) for partition in self._partitions}

    def _decode(self, record: Any) -> Event | None:
        try:
            return decode_event(record.value, record.headers)
        except EnvelopeError as error:
            self.skipped += 1
            _log.warning("%s[%d] offset %d is not an event: %s", record.topic, record.partition, record.offset, error)
            return None


def read_events(settings: Settings, topic: str, start: Mapping[int, int] | None = None) -> EventReader:
    """A reader of every partition of ``topic`` (a full topic name), from ``start`` or from the first record where it says nothing.

    A position that the log no longer has becomes the first that it has: events inform, they are not the truth.
    Raises TopicMissing, BrokerUnavailable.
    """
    consumer = open_consumer(settings, auto_offset_reset="earliest")
    with broker_errors(settings.kafka, f"read {topic}"):
        partitions = sorted(consumer.partitions_for_topic(topic) or ())
        if not partitions:
            consumer.close()
            raise missing(topic, settings)
        _assign(consumer, topic, partitions, start or {})
    return EventReader(settings, topic, consumer, partitions)


def _assign(consumer: KafkaConsumer, topic: str, partitions: list[int], start: Mapping[int, int]) -> None:
    keys = {partition: TopicPartition(topic, partition) for partition in partitions}
    consumer.assign(list(keys.values()))
    fresh = [key for partition, key in keys.items() if partition not in start]
    if fresh:
        consumer.seek_to_beginning(*fresh)
    for partition, key in keys.items():
        if partition in start:
            consumer.seek(key, start[partition])
