"""Reading fixed offset ranges into Arrow, exactly: one row per offset of [start, end), whatever the log holds there.

1. The ranges are fixed by the caller; partitions are assigned by hand and sought to their starts. Small ranges are read many at once.
2. Progress is the consumer's position, never the last record seen: a position passes transaction markers, aborted records and what
   compaction removed, so a range that ends in them ends.
3. Offsets without a record become control rows, so that the rows of a range always number end - start.
4. One record that is broken (a header's name that is not UTF-8, lengths that do not add up) is one marked row and stops nothing
   (pipelines/kafka/records.py). A batch whose CRC is wrong is SourceError: its bytes are not those that were produced.
5. An offset that is out of range is OffsetsLost; no progress for ``ingest.stall_timeout_s`` is SourceStalled. Nothing is skipped.

6. Where the slices' rows are cut into tables follows from the records alone, not from when they arrive: what went wrong with a block is remembered
   by its first row (pipelines/ingest/isolation).

Cost: one bootstrap per call (about 0.05 s), then about 100 MB/s; memory is bounded by about three BLOCK_BYTES and three fetches.
"""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    whole: int = 0
    """Offsets of a whole slice of this partition, which are few where records are large; 0 if it is not known."""


def slices(topic: str, ranges: Mapping[int, OffsetRange], slice_records: int | Mapping[int, int]) -> list[Slice]:
    """The ranges cut into slices of at most ``slice_records`` offsets (of each partition), ordered by (partition, start); empty ranges have none."""
    most = slice_records if isinstance(slice_records, Mapping) else dict.fromkeys(ranges, slice_records)
    return [
        Slice(topic, partition, start, min(start + most[partition], span.end), most[partition])
        for partition, span in sorted(ranges.items())
        for start in range(span.start, span.end, most[partition])
    ]


def read_slice(part: Slice, settings: Settings) -> pa.Table:
    """The whole slice as one table (schemas.arrow.RECORDS). Raises OffsetsLost, SourceStalled, TopicMissing, BrokerUnavailable."""
    return pa.concat_tables([RECORDS.empty_table(), *read_blocks(part, settings)])


def read_blocks(part: Slice, settings: Settings) -> Iterator[pa.Table]:
    """The slice as tables of about BLOCK_BYTES, in offset order; their rows together number end - start."""
    return read_slices([part], settings)


def read_slices(parts: Sequence[Slice], settings: Settings) -> Iterator[pa.Table]:
    """The slices as tables of at most about two BLOCK_BYTES, in their order, read by one consumer.

    Slices of one window share tables; no table spans two windows. Raises OffsetsLost, SourceError, SourceStalled, TopicMissing, BrokerUnavailable.
    """
    if not any(part.end > part.start for part in parts):
        return
    with broker_errors(settings.kafka, f"read {parts[0].topic}"), open_consumer(settings) as consumer:
        consumer._fetcher.PartitionRecords = partition_records(settings.formats.max_batch_unpacked_bytes)
        for window in windows(parts, settings.ingest.slice_records):
            yield from _joined(_Window(consumer, window, settings).tables())


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of about BLOCK_BYTES, in order."""
    waiting: list[pa.Table] = []
    size_bytes = 0
    for table in tables:
        waiting.append(table)
        size_bytes += table.nbytes
        if size_bytes >= BLOCK_BYTES:
            yield pa.concat_tables(waiting)
            waiting, size_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def windows(parts: Sequence[Slice], most: int) -> Iterator[list[Slice]]:
    """Groups of consecutive slices that are read at once: of different partitions, one whole slice together at most; a larger slice is alone.

    ``most``: offsets of a whole slice where a slice does not say. Empty slices are left out.
    """
    window: dict[int, Slice] = {}
    filled = 0.0
    for part in (part for part in parts if part.end > part.start):
        share = (part.end - part.start) / min(part.whole or most, most)
        if window and (filled + share > 1 or part.partition in window):
            yield list(window.values())
            window, filled = {}, 0.0
        window[part.partition] = part
        filled += share
    if window:
        yield list(window.values())


class _Window:
    """Slices of different partitions that are read at once and handed on in their order.

    What is read of the slices behind the first waits in memory. They are paused while they hold BLOCK_BYTES or more together.
    """

    def __init__(self, consumer: KafkaConsumer, parts: Sequence[Slice], settings: Settings) -> None:
        self._consumer = consumer
        self._settings = settings
        self._left = {TopicPartition(part.topic, part.partition): _Rows(part) for part in parts}
        """What is not handed on, in order."""
        self._reached = {key: rows.part.start for key, rows in self._left.items()}
        consumer.assign(list(self._left))
        consumer.resume(*self._left)  # a partition of the window before stands paused at that one's end
        for key, start in self._reached.items():
            consumer.seek(key, start)

    def tables(self) -> Iterator[pa.Table]:
        """Rows of one slice each, in the order of the slices. Raises OffsetsLost, SourceError, SourceStalled, TopicMissing."""
        progress_at = time.monotonic()
        while self._left:
            yield from self._take_in(self._poll())
            if self._has_moved():
                yield from self._ready()
                self._hold_back()
                progress_at = time.monotonic()
            elif time.monotonic() - progress_at > self._settings.ingest.stall_timeout_s:
                raise self._stalled()

    def _take_in(self, found: Mapping[TopicPartition, list[Any]]) -> Iterator[pa.Table]:
        """Take in what a poll gave; blocks of the first slice are handed on when they are full."""
        first = next(iter(self._left))
        for key, records in found.items():
            rows = self._left[key]
            for record in records:
                if record.offset >= rows.part.end:
                    break
                rows.add(record)
                if key == first:
                    yield from rows.blocks()

    def _has_moved(self) -> bool:
        """Whether a position has changed since the last call; it also passes offsets that hold no record, of which a poll says nothing.

        The consumer's method ``position`` is not used: it looks at all assigned partitions in each call, which took 10 s with 1,000 of them.
        """
        assigned = self._consumer._subscription.assignment
        now = {key: assigned[key].position.offset for key in self._left}
        has_moved = any(self._reached[key] != position for key, position in now.items())
        self._reached |= now
        return has_moved

    def _is_read(self, key: TopicPartition) -> bool:
        return self._reached[key] >= self._left[key].part.end

    def _ready(self) -> Iterator[pa.Table]:
        """All of the first slices that are read to their end, and the full blocks of the one behind them."""
        while self._left and self._is_read(first := next(iter(self._left))):
            rows = self._left.pop(first)
            self._consumer.pause(first)
            rows.fill_to(rows.part.end)
            rows.close_block()
            yield from rows.blocks()
        for rows in itertools.islice(self._left.values(), 1):
            yield from rows.blocks()

    def _hold_back(self) -> None:
        """Fetch the first slice. Pause the others while they hold BLOCK_BYTES together, and each that is read to its end."""
        keys = list(self._left)
        is_full = sum(self._left[key].size_bytes for key in keys[1:]) >= BLOCK_BYTES
        for key in keys[1:]:
            (self._consumer.pause if is_full or self._is_read(key) else self._consumer.resume)(key)
        if keys:
            self._consumer.resume(keys[0])

    def _let_go(self) -> None:
        """Drop what the consumer keeps of paused partitions, except what is still to be read and not unpacked yet. It is fetched again if need be.

        What it has unpacked, kafka-python 3.0.12 may never give back: the partition would stand still, and a broken batch in it would go untold.
        And of partitions that are read it would keep up to a whole fetch each, until the window is done.
        """
        fetcher = self._consumer._fetcher
        fetcher._paused_partition_records.clear()
        parked = fetcher._paused_completed_fetches
        for key in [key for key in parked if key not in self._left or self._is_read(key)]:
            del parked[key]

    def _poll(self) -> dict[TopicPartition, list[Any]]:
        self._let_go()
        try:
            found: dict[TopicPartition, list[Any]] = self._consumer.poll(timeout_ms=POLL_TIMEOUT_MS)
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            part = self._named_by(error)
            raise OffsetsLost(
                f"{part.topic}[{part.partition}] no longer holds offsets {part.start} to {part.end - 1}: retention, DeleteRecords or a topic created "
                f"again took them while they were read; nothing was committed ({error})"
            ) from error
        except (CorruptRecordError, UnsupportedCodecError) as error:
            part = self._named_by(error)
            raise SourceError(
                f"{part.topic}[{part.partition}] has a batch between offsets {part.start} and {part.end - 1} whose bytes are not those that were "
                f"produced, or that no codec here can read: {error}; restore the partition from another replica, or remove the batch with "
                "DeleteRecords"
            ) from error
        return found

    def _named_by(self, error: Exception) -> Slice:
        """The slice whose partition the error's text names, as ``TopicPartition(topic=…, partition=…)``; the first unread one if it names none."""
        return next((rows.part for key, rows in self._left.items() if f"{key}" in str(error)), next(iter(self._left.values())).part)

    def _stalled(self) -> SourceStalled:
        key = next(key for key in self._left if not self._is_read(key))
        part = self._left[key].part
        topic_ids(self._settings, [part.topic])  # a topic that is gone is said to be gone
        return SourceStalled(
            f"{part.topic}[{part.partition}] made no progress from offset {self._reached[key]} towards {part.end} for "
            f"{self._settings.ingest.stall_timeout_s:g} s; is the partition's leader up? (ingest.stall_timeout_s)"
        )


class _Rows:
    """A slice as blocks: those that wait, and the columns of the one that is being built. Fills the offsets that a consumer passes over."""

    def __init__(self, part: Slice) -> None:
        self.part = part
        self._next = part.start
        self._blocks: deque[tuple[pa.Table, int]] = deque()
        self._clear()

    def _clear(self) -> None:
        self._open_bytes = 0
        self._offsets: list[int] = []
        self._timestamps_ms: list[int | None] = []
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._headers: list[Headers | None] = []  # None marks an offset without a record

    def add(self, record: Any) -> None:
        """Append a record, and control rows for the offsets before it that have none; closes the block if it is full."""
        self.fill_to(record.offset)
        self._offsets.append(record.offset)
        self._timestamps_ms.append(record.timestamp if 0 <= record.timestamp < 2**63 else None)
        self._keys.append(record.key)
        self._values.append(record.value)
        self._headers.append(record.headers)
        self._next = record.offset + 1
        self._open_bytes += size_of(record.key, record.value, record.headers) + ROW_BYTES + HEADER_BYTES * len(record.headers)
        if self._open_bytes >= BLOCK_BYTES:
            self.close_block()

    def fill_to(self, offset: int) -> None:
        """Append control rows up to, not including, ``offset``."""
        num_gaps = offset - self._next
        if num_gaps <= 0:
            return
        self._offsets.extend(range(self._next, offset))
        for column in (self._timestamps_ms, self._keys, self._values, self._headers):
            column.extend([None] * num_gaps)
        self._next = offset
        self._open_bytes += ROW_BYTES * num_gaps

    @property
    def size_bytes(self) -> int:
        """What all that waits here takes."""
        return self._open_bytes + sum(size_bytes for _, size_bytes in self._blocks)

    def blocks(self) -> Iterator[pa.Table]:
        """Hand on the blocks that are closed."""
        while self._blocks:
            yield self._blocks.popleft()[0]

    def close_block(self) -> None:
        """The rows so far are a block, unless there are none; begins the next one."""
        if self._offsets:
            self._blocks.append((self._table(), self._open_bytes))
            self._clear()

    def _table(self) -> pa.Table:
        num_rows = len(self._offsets)
        columns = [
            pa.repeat(pa.scalar(self.part.topic, pa.string()), num_rows),
            pa.repeat(pa.scalar(self.part.partition, pa.int32()), num_rows),
            pa.array(self._offsets, pa.int64()),
            pa.array(self._timestamps_ms, pa.int64()),
            pa.array([headers is None for headers in self._headers], pa.bool_()),
            pa.array(self._keys, pa.large_binary()),
            pa.array(self._values, pa.large_binary()),
            headers_to_arrow(self._headers),
        ]
        return pa.Table.from_arrays(columns, schema=RECORDS)
