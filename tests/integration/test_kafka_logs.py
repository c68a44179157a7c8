"""Logs with holes, on real Apache Kafka: transactions, compaction, retention, and a topic created again under a reader."""

import threading

import pyarrow as pa
from kafka import TopicPartition

from pipelines.kafka.clients import open_consumer, open_producer
from pipelines.kafka.planning import plan_ranges
from pipelines.kafka.reading import Slice, read_slice
from pipelines.kafka.topics import topic_ids
from schemas.errors import OffsetsLost
from schemas.manifest import OffsetRange
from schemas.settings import Settings
from tests.integration.conftest import Stream, wait_until


def log_start(settings: Settings, topic: str) -> int:
    with open_consumer(settings) as consumer:
        key = TopicPartition(topic, 0)
        return int(consumer.beginning_offsets([key])[key])


def outline(table: pa.Table) -> list[bytes | None]:
    """Values in offset order, None for control rows; checks that no offset is missing or doubled."""
    offsets = table.column("offset").to_pylist()
    assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
    values = table.column("value").to_pylist()
    assert [value is None for value in values] == table.column("is_control").to_pylist()
    return list(values)


def test_aborted_records_and_markers_are_control_rows_and_open_transactions_wait(apache_stream: Stream) -> None:
    settings, topic = apache_stream.settings, apache_stream.create()
    with open_producer(settings, transactional_id=f"{topic}-tx") as producer:
        producer.init_transactions()
        for name, commits in ((b"a", True), (b"b", False), (b"c", True)):
            producer.begin_transaction()
            for _ in range(2):
                producer.send(topic, name).get(10)  # an abort drops what was not sent yet
            producer.commit_transaction() if commits else producer.abort_transaction()
        wait_until(lambda: plan_ranges(settings, topic, {}, 100)[0] == OffsetRange(start=0, end=9), "the last marker")
        whole = [b"a", b"a", None, None, None, None, b"c", b"c", None]
        assert outline(read_slice(Slice(topic, 0, 0, 9), settings)) == whole
        parts = [read_slice(Slice(topic, 0, start, min(start + 2, 9)), settings) for start in range(0, 9, 2)]
        assert outline(pa.concat_tables(parts)) == whole

        producer.begin_transaction()
        producer.send(topic, b"open").get(10)
        assert plan_ranges(settings, topic, {0: 9}, 100)[0] == OffsetRange(start=9, end=9)
        producer.commit_transaction()
        wait_until(lambda: plan_ranges(settings, topic, {0: 9}, 100)[0] == OffsetRange(start=9, end=11), "the marker")
        assert outline(read_slice(Slice(topic, 0, 9, 11), settings)) == [b"open", None]


def test_offsets_that_compaction_removed_are_control_rows(apache_stream: Stream) -> None:
    settings = apache_stream.settings
    topic = apache_stream.create(cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01", delete_retention_ms="0")
    with open_producer(settings, linger_ms=0) as producer:
        for position in range(60):
            producer.send(topic, key=b"k%d" % (position % 3), value=b"v%d" % position).get(10)
    end = plan_ranges(settings, topic, {}, 1000)[0].end

    def compacted() -> bool:
        with open_producer(settings) as producer:  # an active segment is never compacted: roll it
            producer.send(topic, key=b"roll", value=b"roll").get(10)
        return outline(read_slice(Slice(topic, 0, 0, end), settings))[:60].count(None) == 57  # all that it can remove: no read sees it at work

    wait_until(compacted, "compaction")
    rows = outline(read_slice(Slice(topic, 0, 0, end), settings))
    assert len(rows) == end
    assert rows[57:60] == [b"v57", b"v58", b"v59"]
    halves = [read_slice(Slice(topic, 0, start, start + 30), settings) for start in (0, 30)]
    assert outline(pa.concat_tables(halves)) == rows[:60]


def test_a_partition_that_retention_by_time_emptied_has_nothing_new(apache_stream: Stream) -> None:
    settings = apache_stream.settings
    topic = apache_stream.create(retention_ms="1", segment_ms="100")
    with open_producer(settings) as producer:
        for _ in range(10):
            producer.send(topic, b"x", timestamp_ms=1_700_000_000_000).get(10)
    wait_until(lambda: log_start(settings, topic) == 10, "retention")
    assert plan_ranges(settings, topic, {0: 10}, 100) == {0: OffsetRange(start=10, end=10)}
    assert plan_ranges(settings, topic, {}, 100) == {0: OffsetRange(start=10, end=10)}


def test_a_topic_recreated_during_a_read_shows_in_its_id(apache_stream: Stream) -> None:
    """A reader may go on at its old position in the new topic, or learn that it is another one: that depends on the moment. The id always tells."""
    settings, topic = apache_stream.settings, apache_stream.create()
    with open_producer(settings) as producer:
        for _ in range(5):
            producer.send(topic, b"old").get(10)
    before = topic_ids(settings, [topic])
    ended: list[pa.Table | OffsetsLost] = []

    def read() -> None:
        try:
            ended.append(read_slice(Slice(topic, 0, 0, 8), settings))
        except OffsetsLost as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    apache_stream.admin.delete_topics([topic])
    wait_until(lambda: topic not in {entry["name"] for entry in apache_stream.admin.describe_topics()}, "deletion")
    apache_stream.create()
    with open_producer(settings) as producer:
        for _ in range(8):
            producer.send(topic, b"new").get(10)
    reader.join(40)
    assert len(ended) == 1, "the read did not end by itself"
    assert topic_ids(settings, [topic]) != before
