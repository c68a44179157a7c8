"""Events through real brokers: published in the background, read from any position, and never in anybody's way."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pipelines.kafka.clients import open_producer
from pipelines.kafka.events import EventProducer, EventReader, read_events
from pipelines.kafka.topics import ensure_topics, topic_names
from pipelines.runtime.ports import free_ports
from schemas.errors import TopicMissing
from schemas.events import AlertFired, Event, new_event
from tests.broker_process import start_broker
from tests.integration.conftest import Stream, stream_settings, wait_until

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def event(number: int, summary: str = "look") -> Event:
    return new_event(AlertFired(name="lag", severity="info", summary=summary), id=str(number), source="/test", time=NOW, subject=f"s{number}")


def read_until(reader: EventReader, expected: int) -> list[Event]:
    found: list[Event] = []
    deadline = time.monotonic() + 20
    while len(found) < expected:
        assert time.monotonic() < deadline, f"{len(found)} of {expected} events came"
        found += reader.poll(1.0)
    return found


def test_events_arrive_and_a_reader_goes_on_where_another_stopped(stream: Stream) -> None:
    ensure_topics(stream.settings)
    topic = topic_names(stream.settings).events
    with EventProducer(stream.settings) as producer:
        for number in range(10):
            producer.publish(event(number), topic="events")
        assert producer.flush(10)
        with read_events(stream.settings, topic) as reader:
            assert sorted(read_until(reader, 10), key=lambda found: int(found.id)) == [event(number) for number in range(10)]
            positions = reader.positions()
        assert sum(positions.values()) == 10
        producer.publish(event(10), topic="events", key="other")
    assert producer.dropped == 0
    with read_events(stream.settings, topic, positions) as reader:
        assert read_until(reader, 1) == [event(10)]


def test_events_with_one_key_keep_their_order(stream: Stream) -> None:
    ensure_topics(stream.settings)
    with EventProducer(stream.settings) as producer:
        for number in range(200):
            producer.publish(event(number), topic="inference", key="same")
    with read_events(stream.settings, topic_names(stream.settings).inference) as reader:
        assert [found.id for found in read_until(reader, 200)] == [str(number) for number in range(200)]


def test_records_that_are_no_events_are_counted_and_passed_over(stream: Stream) -> None:
    ensure_topics(stream.settings)
    topic = topic_names(stream.settings).events
    with open_producer(stream.settings) as plain:
        for value in (b"\xff", b"{}", b"[" * 5000):
            plain.send(topic, value, partition=0).get(10)
    with EventProducer(stream.settings) as producer:
        producer.publish(event(1), topic="events")
    with read_events(stream.settings, topic) as reader:
        assert read_until(reader, 1) == [event(1)]
        wait_until(lambda: reader.poll(0.1) == [] and reader.skipped == 3, "the records that are no events")


def test_one_event_that_is_too_large_takes_no_other_with_it(stream: Stream) -> None:
    ensure_topics(stream.settings)
    with EventProducer(stream.settings) as producer:
        producer.publish(event(1, "x" * 3_000_000), topic="events")
        assert producer.flush(10)
        producer.publish(event(2), topic="events")
    assert producer.dropped == 1
    with read_events(stream.settings, topic_names(stream.settings).events) as reader:
        assert read_until(reader, 1) == [event(2)]


def test_a_position_that_the_log_no_longer_has_becomes_the_first_that_it_has(stream: Stream) -> None:
    ensure_topics(stream.settings)
    with EventProducer(stream.settings) as producer:
        producer.publish(event(1), topic="events")
    with read_events(stream.settings, topic_names(stream.settings).events, {0: 999, 1: 999}) as reader:
        assert read_until(reader, 1) == [event(1)]


def test_a_missing_topic_is_named(stream: Stream) -> None:
    with pytest.raises(TopicMissing):
        read_events(stream.settings, topic_names(stream.settings).events)


@contextmanager
def late_broker(port: int) -> Iterator[None]:
    with TemporaryDirectory() as folder, start_broker(stream_settings("", "x"), listen=f"127.0.0.1:{port}", root=Path(folder)):
        yield


def test_publish_never_waits_for_a_broker_and_the_queue_is_bounded() -> None:
    port = free_ports(1)[0]
    settings = stream_settings(f"127.0.0.1:{port}", "late")
    with EventProducer(settings, max_pending=50) as producer:
        began = time.monotonic()
        for number in range(80):
            producer.publish(event(number), topic="events", key="same")
        assert time.monotonic() - began < 1.0
        assert producer.dropped == 30
        assert not producer.flush(0.05)
        with late_broker(port):
            ensure_topics(settings)
            assert producer.flush(20)
            with read_events(settings, topic_names(settings).events) as reader:
                assert [found.id for found in read_until(reader, 50)] == [str(number) for number in range(50)]
    assert producer.dropped == 30
