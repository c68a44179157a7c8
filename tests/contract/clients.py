"""The same few actions with two Python clients, so that one test can be run with both."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import confluent_kafka
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

TIMEOUT_S = 30.0
POLL_MS = 1_000
"""kafka-python 3.0.12 may send no heartbeats after it has joined a group if its poll ran out while it joined, or if it refreshed its metadata
meanwhile (left at its five minutes): the group goes on without it, and it never learns.
"""


@dataclass(frozen=True)
class Record:
    """What a consumer sees, and what a producer is given."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: int = 0
    partition: int = 0
    offset: int = field(default=-1, compare=False)


class Reader(Protocol):
    """A consumer in a group."""

    def poll(self) -> list[Record]:
        """What has come, perhaps nothing."""

    def commit(self) -> None:
        """Commit the position, and wait for it."""

    def partitions(self) -> set[int]:
        """Partitions that are assigned now."""


class Client(Protocol):
    """One client library."""

    def produce(self, topic: str, records: Sequence[Record], *, codec: str = "none") -> list[int]:
        """Offsets of the records, in order."""

    def reader(self, topic: str, group: str) -> Any:
        """Context manager of a Reader that starts at the beginning."""

    def offset_for_time(self, topic: str, timestamp: int) -> int | None:
        """Offset in partition 0 of the first record at or after a time."""

    def transactional(self) -> None:
        """Try to start a transaction; raises if the broker refuses."""


class KafkaPython:
    """kafka-python."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.servers = bootstrap_servers

    def produce(self, topic: str, records: Sequence[Record], *, codec: str = "none") -> list[int]:
        producer = KafkaProducer(bootstrap_servers=self.servers, compression_type=None if codec == "none" else codec, linger_ms=5)
        futures = [
            producer.send(topic, record.value, record.key, list(record.headers), partition=record.partition, timestamp_ms=record.timestamp or None)
            for record in records
        ]
        offsets = [int(future.get(TIMEOUT_S).offset) for future in futures]
        producer.close()
        return offsets

    @contextmanager
    def reader(self, topic: str, group: str) -> Iterator[Reader]:
        consumer = KafkaConsumer(
            bootstrap_servers=self.servers,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=6_000,
            heartbeat_interval_ms=300,
        )
        try:
            consumer.partitions_for_topic(topic)  # a member that leads its group before it knows the topic assigns nothing, and stays with that
            consumer.subscribe([topic])
            yield _KafkaPythonReader(consumer)
        finally:
            consumer.close()

    def offset_for_time(self, topic: str, timestamp: int) -> int | None:
        consumer = KafkaConsumer(bootstrap_servers=self.servers)
        partition = TopicPartition(topic, 0)
        found = consumer.offsets_for_times({partition: timestamp})[partition]
        consumer.close()
        return None if found is None else int(found.offset)

    def transactional(self) -> None:
        producer = KafkaProducer(bootstrap_servers=self.servers, transactional_id=f"t-{time.time_ns()}", max_block_ms=10_000)
        try:
            producer.init_transactions()
        finally:
            producer.close(timeout=0)


class _KafkaPythonReader:
    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def poll(self) -> list[Record]:
        found = self._consumer.poll(timeout_ms=POLL_MS)
        return [
            Record(one.value, one.key, tuple((key, bytes(value)) for key, value in one.headers), one.timestamp, one.partition, one.offset)
            for records in found.values()
            for one in records
        ]

    def commit(self) -> None:
        positions = {partition: OffsetAndMetadata(self._consumer.position(partition), "", -1) for partition in self._consumer.assignment()}
        self._consumer.commit(positions)

    def partitions(self) -> set[int]:
        return {partition.partition for partition in self._consumer.assignment()}


class Confluent:
    """confluent-kafka, that is librdkafka."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.servers = bootstrap_servers

    def produce(self, topic: str, records: Sequence[Record], *, codec: str = "none") -> list[int]:
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": self.servers, "compression.type": codec, "enable.idempotence": True, "linger.ms": 5}
        )
        offsets: dict[int, int] = {}

        for index, record in enumerate(records):
            producer.produce(
                topic,
                record.value,
                record.key,
                partition=record.partition,
                headers=list(record.headers),
                timestamp=record.timestamp,
                on_delivery=partial(_note_offset, offsets, index),
            )
        assert producer.flush(TIMEOUT_S) == 0
        return [offsets[index] for index in range(len(records))]

    @contextmanager
    def reader(self, topic: str, group: str) -> Iterator[Reader]:
        consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": self.servers,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 6_000,
                "heartbeat.interval.ms": 300,
                "topic.metadata.refresh.interval.ms": 1_000,
            }
        )
        consumer.subscribe([topic])
        try:
            yield _ConfluentReader(consumer)
        finally:
            consumer.close()

    def offset_for_time(self, topic: str, timestamp: int) -> int | None:
        consumer = confluent_kafka.Consumer({"bootstrap.servers": self.servers, "group.id": "times"})
        found = consumer.offsets_for_times([confluent_kafka.TopicPartition(topic, 0, timestamp)], timeout=TIMEOUT_S)[0].offset
        consumer.close()
        return None if found < 0 else int(found)

    def transactional(self) -> None:
        producer = confluent_kafka.Producer({"bootstrap.servers": self.servers, "transactional.id": f"t-{time.time_ns()}"})
        producer.init_transactions(10)


def _note_offset(offsets: dict[int, int], index: int, error: Any, message: Any) -> None:
    assert error is None, error
    offsets[index] = message.offset()


class _ConfluentReader:
    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def poll(self) -> list[Record]:
        messages = self._consumer.consume(1_000, timeout=0.1)
        for message in messages:
            assert message.error() is None, message.error()
        return [
            Record(message.value(), message.key(), tuple(message.headers() or ()), message.timestamp()[1], message.partition(), message.offset())
            for message in messages
        ]

    def commit(self) -> None:
        self._consumer.commit(asynchronous=False)

    def partitions(self) -> set[int]:
        return {partition.partition for partition in self._consumer.assignment()}


CLIENTS: dict[str, type[KafkaPython] | type[Confluent]] = {"kafka-python": KafkaPython, "confluent": Confluent}
