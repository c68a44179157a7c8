"""Retention by time and by size takes whole segments, and may leave a partition empty with its offsets intact."""

import time

from tests.contract.wire import Wire, batch, eventually

SEGMENT = "1048576"
"""The smallest that Apache Kafka takes."""


def log_start(wire: Wire, topic: str) -> int:
    return int(wire.list_offset(topic, -2).offset)


def test_retention_by_time_empties_a_partition_and_keeps_its_offsets(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix, retention_ms="2000")
    old = int(time.time() * 1000) - 60_000
    for index in range(5):
        wire.produce(topic_prefix, batch([b"old"], timestamps=[old + index]))
    eventually(lambda: log_start(wire, topic_prefix) == 5, "old records stay")
    assert wire.list_offset(topic_prefix, -1).offset == 5
    assert wire.fetch(topic_prefix, 0).error_code == 1
    assert wire.produce(topic_prefix, batch([b"new"])).base_offset == 5


def test_retention_by_size_takes_the_oldest_segments(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix, retention_bytes="2000000", segment_bytes=SEGMENT)
    for _ in range(12):
        wire.produce(topic_prefix, batch([b"x" * 500_000]))
    eventually(lambda: log_start(wire, topic_prefix) > 0, "nothing is taken")
    eventually(lambda: log_start(wire, topic_prefix) == 8, "not as much as there should be")
    assert wire.list_offset(topic_prefix, -1).offset == 12
    assert wire.fetch(topic_prefix, 8).error_code == 0


def test_a_compacted_topic_is_not_subject_to_retention(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix, retention_ms="1000", cleanup_policy="compact")
    short_lived = f"{topic_prefix}-witness"
    wire.create_topic(short_lived, retention_ms="1000")
    old = int(time.time() * 1000) - 60_000
    for topic in (topic_prefix, short_lived):
        wire.produce(topic, with_key(old))
    eventually(lambda: log_start(wire, short_lived) == 1, "retention does not run")
    assert log_start(wire, topic_prefix) == 0


def with_key(timestamp: int) -> bytes:
    """A compacted topic takes no records without a key."""
    from kafka.record.memory_records import MemoryRecordsBuilder

    builder = MemoryRecordsBuilder(2, 0, 10_000)
    builder.append(timestamp, b"key", b"value")
    builder.close()
    return bytes(builder.buffer())
