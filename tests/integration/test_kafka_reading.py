"""Planning and reading against real brokers: one row per offset, nothing skipped in silence."""

import gc
import threading
import time
from typing import Any

import pyarrow as pa
import pytest
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import FetchResponse

from pipelines.kafka import reading
from pipelines.kafka.clients import open_consumer, open_producer
from pipelines.kafka.planning import plan_ranges
from pipelines.kafka.reading import BLOCK_BYTES, Slice, read_blocks, read_slice, read_slices, slices
from pipelines.kafka.topics import ensure_topics, topic_ids, topic_names
from schemas.arrow import RECORDS
from schemas.errors import OffsetsLost, SourceStalled, TopicMissing
from schemas.headers import headers_from_arrow
from schemas.manifest import OffsetRange
from schemas.settings import Settings
from tests.integration.conftest import Stream

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


def send(settings: Settings, topic: str, values: list[bytes], partition: int = 0, **options: Any) -> None:
    with open_producer(settings, **options) as producer:
        futures = [producer.send(topic, value, partition=partition) for value in values]
        producer.flush()
        for future in futures:
            future.get(10)


def delete_before(stream: Stream, offset: int, partition: int = 0) -> None:
    stream.admin.delete_records({TopicPartition(stream.topic, partition): offset})


def hasty(stream: Stream) -> Settings:
    """Settings with which a read that gets nowhere is given up after a second."""
    return stream.settings.model_copy(update={"ingest": stream.settings.ingest.model_copy(update={"stall_timeout_s": 1.0})})


def with_slices_of(stream: Stream, num_records: int) -> Settings:
    return hasty(stream).model_copy(update={"ingest": hasty(stream).ingest.model_copy(update={"slice_records": num_records})})


def values_of(table: pa.Table) -> list[bytes | None]:
    return list(table.column("value").to_pylist())


def test_every_part_of_a_record_arrives_as_it_was_sent(stream: Stream) -> None:
    topic = stream.create()
    sent_ms = int(time.time() * 1000) - 60_000  # not older than the topic's retention, or the broker may delete what it just took
    records: list[Record] = [
        (b"k", b"v", [("a", b"1"), ("a", b"2"), ("\u6c34", b"")]),
        (None, b"", []),
        (b"", b"\xff\x00", [("x", b"\x00")]),
        (b"gone", None, []),
    ]
    with open_producer(stream.settings) as producer:
        for position, (key, value, headers) in enumerate(records):
            producer.send(topic, key=key, value=value, headers=headers, timestamp_ms=sent_ms + position).get(10)
    table = read_slice(Slice(topic, 0, 0, 4), stream.settings)
    assert table.schema == RECORDS
    rows = zip(table.column("key").to_pylist(), values_of(table), headers_from_arrow(table.column("headers")), strict=True)
    assert list(rows) == records
    assert table.column("offset").to_pylist() == [0, 1, 2, 3]
    assert table.column("timestamp_ms").to_pylist() == [sent_ms + position for position in range(4)]
    assert table.column("is_control").to_pylist() == [False] * 4
    assert set(table.column("topic").to_pylist()) == {topic}


def fetched() -> set[int]:
    """What readers of this process hold of their fetches, those of other tests among them."""
    return {id(found) for found in gc.get_objects() if issubclass(type(found), (Fetcher, FetchResponse))}  # isinstance would ask objects themselves


def test_a_reader_that_is_done_holds_nothing_of_what_it_fetched(stream: Stream) -> None:
    topic = stream.create()
    send(stream.settings, topic, [b"document"] * 10)
    gc.collect()
    before = fetched()
    gc.disable()
    try:
        read_slice(Slice(topic, 0, 0, 3), stream.settings)
        assert fetched() <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_slices_tile_a_range_whatever_the_batches_and_their_codec(stream: Stream, codec: str | None) -> None:
    topic = stream.create()
    values = [b"document %d" % position for position in range(100)]
    send(stream.settings, topic, values, compression_type=codec, linger_ms=50)
    parts = slices(topic, {0: OffsetRange(start=0, end=100)}, 33)
    assert [(part.start, part.end) for part in parts] == [(0, 33), (33, 66), (66, 99), (99, 100)]
    assert [value for part in parts for value in values_of(read_slice(part, stream.settings))] == values


def test_headers_count_towards_the_size_of_a_block(stream: Stream) -> None:
    topic = stream.create()
    header = ("note", b"x" * 900_000)
    num_records = 2 * BLOCK_BYTES // 900_000
    with open_producer(stream.settings) as producer:
        for _ in range(num_records):
            producer.send(topic, value=b"v", headers=[header]).get(10)
    blocks = list(read_blocks(Slice(topic, 0, 0, num_records), stream.settings))
    assert sum(map(len, blocks)) == num_records
    assert len(blocks) > 1
    assert all(block.nbytes <= BLOCK_BYTES + 2 * 900_000 for block in blocks)


def test_a_first_plan_starts_where_the_log_starts_and_shares_out_fairly(stream: Stream) -> None:
    topic = stream.create(num_partitions=3)
    send(stream.settings, topic, [b"x"] * 30, partition=0)
    send(stream.settings, topic, [b"x"] * 4, partition=2)
    delete_before(stream, 10)
    assert plan_ranges(stream.settings, topic, {}, 15) == {
        0: OffsetRange(start=10, end=21),
        1: OffsetRange(start=0, end=0),
        2: OffsetRange(start=0, end=4),
    }


def test_a_later_plan_goes_on_where_the_version_before_ended(stream: Stream) -> None:
    topic = stream.create(num_partitions=2)
    send(stream.settings, topic, [b"x"] * 5)
    assert plan_ranges(stream.settings, topic, {0: 3, 1: 0}, 100) == {0: OffsetRange(start=3, end=5), 1: OffsetRange(start=0, end=0)}
    assert plan_ranges(stream.settings, topic, {0: 5, 1: 0}, 100)[0] == OffsetRange(start=5, end=5)


def test_offsets_removed_before_they_were_read_stop_the_plan(stream: Stream) -> None:
    topic = stream.create()
    send(stream.settings, topic, [b"x"] * 10)
    delete_before(stream, 6)
    with pytest.raises(OffsetsLost, match=rf"offsets 2 to 5 of {topic}\[0\] were removed"):
        plan_ranges(stream.settings, topic, {0: 2}, 100)
    assert plan_ranges(stream.settings, topic, {0: 6}, 100)[0] == OffsetRange(start=6, end=10)


def test_a_partition_that_retention_emptied_is_no_loss_if_it_was_read(stream: Stream) -> None:
    topic = stream.create()
    send(stream.settings, topic, [b"x"] * 10)
    delete_before(stream, 10)
    assert plan_ranges(stream.settings, topic, {0: 10}, 100) == {0: OffsetRange(start=10, end=10)}
    assert plan_ranges(stream.settings, topic, {}, 100) == {0: OffsetRange(start=10, end=10)}


def test_a_log_that_ends_before_the_dataset_goes_on_stops_the_plan(stream: Stream) -> None:
    topic = stream.create()
    send(stream.settings, topic, [b"x"] * 3)
    with pytest.raises(OffsetsLost, match="ends at offset 3, before offset 7"):
        plan_ranges(stream.settings, topic, {0: 7}, 100)
    with pytest.raises(OffsetsLost, match=r"\[4\] is no longer there"):
        plan_ranges(stream.settings, topic, {0: 3, 4: 1}, 100)


def test_records_of_a_partition_that_was_added_later_are_read_from_offset_0_or_missed_aloud(stream: Stream) -> None:
    topic = stream.create(num_partitions=2)
    send(stream.settings, topic, [b"x"] * 3, partition=1)
    assert plan_ranges(stream.settings, topic, {0: 0}, 100)[1] == OffsetRange(start=0, end=3)
    delete_before(stream, 2, partition=1)
    with pytest.raises(OffsetsLost, match="offsets 0 to 1"):
        plan_ranges(stream.settings, topic, {0: 0}, 100)


def test_offsets_removed_between_plan_and_read_stop_the_read(stream: Stream) -> None:
    topic = stream.create()
    send(stream.settings, topic, [b"x"] * 10)
    delete_before(stream, 6)
    with pytest.raises(OffsetsLost, match="no longer holds offsets 2 to 9"):
        read_slice(Slice(topic, 0, 2, 10), stream.settings)


@pytest.mark.parametrize("block_bytes", [BLOCK_BYTES, 1_000])
def test_small_slices_of_many_partitions_are_read_by_one_consumer_in_their_order(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    topic = stream.create(num_partitions=30)
    for partition in range(30):
        send(stream.settings, topic, [b"%d/%d" % (partition, number) * 50 for number in range(partition % 4)], partition)
    parts = [Slice(topic, partition, 0, partition % 4) for partition in range(30) if partition % 4]
    expected = pa.concat_tables([read_slice(part, stream.settings) for part in parts])
    opened: list[Any] = []
    monkeypatch.setattr(reading, "open_consumer", lambda settings: opened.append(open_consumer(settings)) or opened[-1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    blocks = list(read_slices(parts, stream.settings))
    assert pa.concat_tables(blocks).equals(expected)
    assert len(opened) == 1 and (len(blocks) == 1) is (block_bytes == BLOCK_BYTES)


def test_one_consumer_reads_window_after_window(stream: Stream) -> None:
    topic = stream.create(num_partitions=3)
    for partition in range(3):
        send(stream.settings, topic, [b"%d/%d" % (partition, number) for number in range(50)], partition)
    parts = slices(topic, {partition: OffsetRange(start=0, end=50) for partition in range(3)}, 15)
    settings = with_slices_of(stream, 20)
    found = pa.concat_tables(read_slices(parts, settings))
    assert found.equals(pa.concat_tables([read_slice(Slice(topic, partition, 0, 50), settings) for partition in range(3)]))


def with_small_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll gives 10 records at most, a fetch the batches of 4 kB, and 2 kB are a block."""
    small = {"max_poll_records": 10, "fetch_max_bytes": 4_000, "max_partition_fetch_bytes": 4_000}
    monkeypatch.setattr(reading, "open_consumer", lambda settings: open_consumer(settings, **small))
    monkeypatch.setattr(reading, "BLOCK_BYTES", 2_000)


def test_a_partition_that_waits_in_the_middle_of_a_fetch_goes_on(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = stream.create(num_partitions=2)
    send(stream.settings, topic, [b"%d" % number * 1_000 for number in range(40)], 0, batch_size=0)
    send(stream.settings, topic, [b"%d" % number for number in range(40)], 1, linger_ms=100)
    with_small_fetches(monkeypatch)
    found = pa.concat_tables(read_slices([Slice(topic, partition, 0, 40) for partition in range(2)], hasty(stream)))
    assert [(row["partition"], row["offset"]) for row in found.to_pylist()] == [(partition, offset) for partition in range(2) for offset in range(40)]


@pytest.mark.parametrize("num_records", [1, 7, 10_000])
def test_where_blocks_are_cut_follows_from_the_records_and_not_from_when_they_arrive(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, num_records: int
) -> None:
    topic = stream.create(num_partitions=3)
    for partition in range(3):
        send(stream.settings, topic, [b"%d" % number * (number % 40) for number in range(60)], partition, batch_size=500)
    parts = [Slice(topic, partition, 0, 60) for partition in range(3)]
    monkeypatch.setattr(reading, "BLOCK_BYTES", 2_000)
    alone = [table for part in parts for table in _tables([part], stream, 500)]
    assert len(alone) > 20
    assert [table.to_pylist() for table in _tables(parts, stream, num_records)] == [table.to_pylist() for table in alone]


def _tables(parts: list[Slice], stream: Stream, num_records: int) -> list[pa.Table]:
    """What a window gives before small tables are joined, if a poll gives so many records at most."""
    with open_consumer(stream.settings, max_poll_records=num_records) as consumer:
        return list(reading._Window(consumer, parts, stream.settings).tables())


def test_a_slice_that_ends_without_a_record_is_handed_on_while_others_are_read(stream: Stream) -> None:
    """A position passes transaction markers in silence; here it is moved by hand."""
    topic = stream.create(num_partitions=2)
    for partition in range(2):
        send(stream.settings, topic, [b"x"] * 60, partition)
    with open_consumer(stream.settings, max_poll_records=10) as consumer:
        window = reading._Window(consumer, [Slice(topic, partition, 0, 60) for partition in range(2)], stream.settings)
        consumer.seek(TopicPartition(topic, 0), 60)
        tables = window.tables()
        first = next(tables)
        assert first["partition"].to_pylist() == [0] * 60 and all(first["is_control"].to_pylist())
        assert window._reached[TopicPartition(topic, 1)] < 60
        assert sum(map(len, tables)) == 60


def test_of_partitions_that_are_read_no_fetches_are_kept(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = stream.create(num_partitions=12)
    for partition in range(12):
        send(stream.settings, topic, [b"x" * 100] * 50, partition, linger_ms=100)
    kept: list[int] = []

    def polled(window: reading._Window) -> dict[TopicPartition, list[Any]]:
        found = poll(window)
        fetcher = window._consumer._fetcher
        kept.append(len(fetcher._paused_partition_records) + len(fetcher._paused_completed_fetches))
        return found

    poll = reading._Window._poll
    monkeypatch.setattr(reading._Window, "_poll", polled)
    with_small_fetches(monkeypatch)
    found = pa.concat_tables(read_slices([Slice(topic, partition, 0, 5) for partition in range(12)], hasty(stream)))
    assert len(found) == 60
    assert max(kept) <= 2


def test_a_partition_without_progress_is_a_stall_not_a_hang(stream: Stream) -> None:
    topic = stream.create()
    send(stream.settings, topic, [b"x"] * 3)
    with pytest.raises(SourceStalled, match="no progress from offset 3 towards 5"):
        read_slice(Slice(topic, 0, 0, 5), hasty(stream))


def test_a_missing_topic_is_named_and_looking_does_not_create_it(stream: Stream) -> None:
    for look in (
        lambda: plan_ranges(stream.settings, stream.topic, {}, 10),
        lambda: topic_ids(stream.settings, [stream.topic]),
        lambda: read_slice(Slice(stream.topic, 0, 0, 1), hasty(stream)),
    ):
        with pytest.raises(TopicMissing, match=f"there is no topic '{stream.topic}'"):
            look()
    assert stream.topic not in {topic["name"] for topic in stream.admin.describe_topics()}


def test_topics_are_created_once_and_a_recreated_topic_has_another_id(stream: Stream) -> None:
    ensure_topics(stream.settings)
    names = topic_names(stream.settings)
    before = topic_ids(stream.settings, names)
    ensure_topics(stream.settings)
    assert topic_ids(stream.settings, names) == before
    assert len(set(before.values())) == len(names)
    stream.admin.delete_topics([names.documents])
    ensure_topics(stream.settings)
    after = topic_ids(stream.settings, names)
    assert after[names.documents] != before[names.documents]
    assert after[names.events] == before[names.events]


def test_concurrent_creation_is_no_error(stream: Stream) -> None:
    errors: list[BaseException] = []

    def create() -> None:
        try:
            ensure_topics(stream.settings)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_20_mb_value_is_read_and_blocks_stay_bounded(stream: Stream) -> None:
    topic = stream.create(max_message_bytes=str(24 * 2**20))
    values = [b"small", b"a" * 20_000_000, b"b" * 20_000_000, b"c" * 20_000_000, b"last"]
    send(stream.settings, topic, values)
    blocks = list(read_blocks(Slice(topic, 0, 0, 5), stream.settings))
    assert len(blocks) == 2
    assert all(block.nbytes < BLOCK_BYTES + 21_000_000 for block in blocks)
    assert [value for block in blocks for value in values_of(block)] == values


def test_an_empty_slice_reads_nothing(stream: Stream) -> None:
    topic = stream.create()
    assert read_slice(Slice(topic, 0, 0, 0), stream.settings).num_rows == 0
    assert slices(topic, {0: OffsetRange(start=0, end=0)}, 10) == []
