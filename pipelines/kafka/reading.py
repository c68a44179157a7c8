"""Reading fixed offset ranges into Arrow, exactly: one row per offset of [start, end), whatever the log holds there.

1. The range is fixed by the caller; the partition is assigned by hand and sought to its start.
2. Progress is the consumer's position, never the last record seen: a position passes transaction markers, aborted records and what
   compaction removed, so a range that ends in them ends.
3. Offsets without a record become control rows, so that the rows of a range always number end - start.
4. One record that is broken (a header's name that is not UTF-8, lengths that do not add up) is one marked row and stops nothing
   (pipelines/kafka/records.py). A batch whose CRC is wrong is SourceError: its bytes are not those that were produced.
5. An offset that is out of range is OffsetsLost; no progress for ``ingest.stall_timeout_s`` is SourceStalled. Nothing is skipped.

Cost: one bootstrap per slice (about 0.05 s), then about 100 MB/s; memory is bounded by BLOCK_BYTES plus three fetches, whatever the range.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, LogTruncationError, OffsetOutOfRangeError, UnsupportedCodecError

from pipelines.kafka.clients import broker_errors, open_consumer
from pipelines.kafka.records import partition_records
from pipelines.kafka.sizes import size_of
from pipelines.kafka.topics import topic_ids
from schemas.arrow import RECORDS
from schemas.envelope import Headers
from schemas.errors import OffsetsLost, SourceError, SourceStalled
from schemas.headers import headers_to_arrow
from schemas.manifest import OffsetRange
from schemas.settings import Settings

BLOCK_BYTES = 32 * 2**20
"""A block is handed on when what it holds reaches this size: keys, values, headers, and ROW_BYTES and HEADER_BYTES for each of them."""
ROW_BYTES, HEADER_BYTES = 256, 128
"""What a row and a header cost by themselves while they are Python objects."""
EXPECTED_RECORD_BYTES = 2_048
"""Guess at a record's size, for planning memory only."""
POLL_TIMEOUT_MS = 500


class Slice(NamedTuple):
    """Offsets [start, end) of one partition: the work of one read task."""

    topic: str
    partition: int
    start: int
    end: int


def slices(topic: str, ranges: Mapping[int, OffsetRange], slice_records: int | Mapping[int, int]) -> list[Slice]:
    """The ranges cut into slices of at most ``slice_records`` offsets (of each partition), ordered by (partition, start); empty ranges have none."""
    most = slice_records if isinstance(slice_records, Mapping) else dict.fromkeys(ranges, slice_records)
    return [
        Slice(topic, partition, start, min(start + most[partition], span.end))
        for partition, span in sorted(ranges.items())
        for start in range(span.start, span.end, most[partition])
    ]


def read_slice(part: Slice, settings: Settings) -> pa.Table:
    """The whole slice as one table (schemas.arrow.RECORDS). Raises OffsetsLost, SourceStalled, TopicMissing, BrokerUnavailable."""
    return pa.concat_tables([RECORDS.empty_table(), *read_blocks(part, settings)])


def read_blocks(part: Slice, settings: Settings) -> Iterator[pa.Table]:
    """The slice as tables of about BLOCK_BYTES, in offset order; their rows together number end - start."""
    rows = _Rows(part)
    for records in _record_batches(part, settings):
        for record in records:
            if record.offset >= part.end:
                break
            rows.add(record)
            if rows.size_bytes >= BLOCK_BYTES:
                yield rows.take()
    rows.fill_to(part.end)
    if rows.offsets:
        yield rows.take()


def _record_batches(part: Slice, settings: Settings) -> Iterator[list[Any]]:
    """What each poll gave, until the position has passed the end of the slice."""
    key = TopicPartition(part.topic, part.partition)
    with broker_errors(settings.kafka, f"read {part.topic}[{part.partition}]"), open_consumer(settings) as consumer:
        consumer._fetcher.PartitionRecords = partition_records(settings.formats.max_batch_unpacked_bytes)
        consumer.assign([key])
        consumer.seek(key, part.start)
        position, progress_at = part.start, time.monotonic()
        while position < part.end:
            yield _poll(consumer, key, part)
            reached = consumer.position(key, timeout_ms=POLL_TIMEOUT_MS)
            if reached != position:
                position, progress_at = reached, time.monotonic()
            elif time.monotonic() - progress_at > settings.ingest.stall_timeout_s:
                raise _stalled(part, position, settings)


def _poll(consumer: KafkaConsumer, key: TopicPartition, part: Slice) -> list[Any]:
    try:
        records: list[Any] = consumer.poll(timeout_ms=POLL_TIMEOUT_MS).get(key, [])
    except (OffsetOutOfRangeError, LogTruncationError) as error:
        raise OffsetsLost(
            f"{part.topic}[{part.partition}] no longer holds offsets {part.start} to {part.end - 1}: retention, DeleteRecords or a topic created "
            f"again took them while they were read; nothing was committed ({error})"
        ) from error
    except (CorruptRecordError, UnsupportedCodecError) as error:
        raise SourceError(
            f"{part.topic}[{part.partition}] has a batch between offsets {part.start} and {part.end - 1} whose bytes are not those that were "
            f"produced, or that no codec here can read: {error}; restore the partition from another replica, or remove the batch with DeleteRecords"
        ) from error
    return records


def _stalled(part: Slice, position: int, settings: Settings) -> SourceStalled:
    topic_ids(settings, [part.topic])  # a topic that is gone is said to be gone
    return SourceStalled(
        f"{part.topic}[{part.partition}] made no progress from offset {position} towards {part.end} for {settings.ingest.stall_timeout_s:g} s; "
        "is the partition's leader up? (ingest.stall_timeout_s)"
    )


class _Rows:
    """Columns of the block that is being built; fills the offsets that a consumer passes over."""

    def __init__(self, part: Slice) -> None:
        self._part = part
        self._next = part.start
        self._clear()

    def _clear(self) -> None:
        self.size_bytes = 0
        self.offsets: list[int] = []
        self._timestamps_ms: list[int | None] = []
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._headers: list[Headers | None] = []  # None marks an offset without a record

    def add(self, record: Any) -> None:
        """Append a record, and control rows for the offsets before it that have none."""
        self.fill_to(record.offset)
        self.offsets.append(record.offset)
        self._timestamps_ms.append(record.timestamp if 0 <= record.timestamp < 2**63 else None)
        self._keys.append(record.key)
        self._values.append(record.value)
        self._headers.append(record.headers)
        self._next = record.offset + 1
        self.size_bytes += size_of(record.key, record.value, record.headers) + ROW_BYTES + HEADER_BYTES * len(record.headers)

    def fill_to(self, offset: int) -> None:
        """Append control rows up to, not including, ``offset``."""
        num_gaps = offset - self._next
        if num_gaps <= 0:
            return
        self.offsets.extend(range(self._next, offset))
        for column in (self._timestamps_ms, self._keys, self._values, self._headers):
            column.extend([None] * num_gaps)
        self._next = offset
        self.size_bytes += ROW_BYTES * num_gaps

    def take(self) -> pa.Table:
        """The rows so far as a table; begins an empty block."""
        num_rows = len(self.offsets)
        columns = [
            pa.repeat(pa.scalar(self._part.topic, pa.string()), num_rows),
            pa.repeat(pa.scalar(self._part.partition, pa.int32()), num_rows),
            pa.array(self.offsets, pa.int64()),
            pa.array(self._timestamps_ms, pa.int64()),
            pa.array([headers is None for headers in self._headers], pa.bool_()),
            pa.array(self._keys, pa.large_binary()),
            pa.array(self._values, pa.large_binary()),
            headers_to_arrow(self._headers),
        ]
        self._clear()
        return pa.Table.from_arrays(columns, schema=RECORDS)
