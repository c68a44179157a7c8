"""The log of one partition: segments, offsets, and who waits for more of it.

Invariants: offsets are dense and never reused; a batch is acknowledged only after it is with the operating system (``Segment.append``);
after a crash the log is the longest prefix of whole batches, which contains everything acknowledged. Log start moves up only, and is on
disk before a producer gets its acknowledgement. Each opening writes under a newer leader epoch (epochs.py), so a log that lost its end
and grew again shows that.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from ops.broker.batch import BatchHeader
from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.epochs import Epochs
from ops.broker.files import read_json, write_json
from ops.broker.producers import ProducerStates
from ops.broker.segment import Segment, segment_offsets
from pipelines.storage.durable import sync_folder
from schemas.errors import BrokerError

logger = logging.getLogger(__name__)


class PartitionLog:
    """One partition. Opening it recovers it, and begins a leader epoch."""

    def __init__(self, folder: Path, leader_epoch: int = 0) -> None:
        self.folder = folder
        self.epochs = Epochs()
        self.producers = ProducerStates()
        self.start_offset = 0
        self.waiters: set[Callable[[], None]] = set()
        """Called after every change that a waiting fetch may be interested in."""
        self._segments: list[Segment] = []
        self._open()
        self.epochs.begin(leader_epoch, self.next_offset)

    @property
    def next_offset(self) -> int:
        """The offset that the next record gets; also the high watermark, since there is one replica."""
        return self._segments[-1].next_offset

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size_bytes for segment in self._segments)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)  # a broken disk may have taken an empty partition's folder
        start = int(read_json(self._start_file, {"log_start_offset": 0})["log_start_offset"])
        bases = segment_offsets(self.folder) or [start]
        for base in bases:
            self._segments.append(self._recover(base, is_last=base == bases[-1]))
        if start > self.next_offset:  # a power cut took records that were deleted anyway
            self._segments.append(Segment(self.folder, start))
        self.start_offset = max(start, bases[0])
        self._delete_before_start()

    @property
    def _start_file(self) -> Path:
        return self.folder / "log-start.json"

    def _recover(self, base_offset: int, *, is_last: bool) -> Segment:
        segment = Segment(self.folder, base_offset)
        torn_bytes = segment.recover(verify_crc=is_last, on_batch=self._note)
        if torn_bytes and not is_last:
            raise BrokerError(f"{segment.path} is damaged at byte {segment.size_bytes}; restore it, or delete the topic's folder to lose the topic")
        if torn_bytes:
            logger.warning("cut %d bytes of an unfinished write off %s", torn_bytes, segment.path)
            segment.truncate()
        return segment

    def _note(self, header: BatchHeader) -> None:
        self.producers.record(header, header.base_offset)
        self.epochs.begin(header.leader_epoch, header.base_offset)

    def append(self, batch: bytes, header: BatchHeader, segment_bytes: int) -> int:
        """Append a checked batch; returns its base offset (the old one for a repetition by an idempotent producer).

        Raises ProtocolError for a producer out of turn, and KAFKA_STORAGE_ERROR when the disk refuses.
        """
        original = self.producers.original_offset(header)
        if original is not None:
            return original
        base_offset = self.next_offset
        try:
            self._segment_for(len(batch), segment_bytes).append(batch, header, self.epochs.latest)
        except OSError as error:
            logger.exception("append to %s failed", self.folder)
            raise ProtocolError(ErrorCode.KAFKA_STORAGE_ERROR, str(error)) from error
        self.producers.record(header, base_offset)
        self.wake()
        return base_offset

    def _segment_for(self, batch_bytes: int, segment_bytes: int) -> Segment:
        last = self._segments[-1]
        if last.size_bytes and last.size_bytes + batch_bytes > segment_bytes:
            return self.roll()
        return last

    def roll(self) -> Segment:
        """Seal the last segment and start a new one."""
        self._segments[-1].seal()
        self._segments.append(Segment(self.folder, self.next_offset))
        sync_folder(self.folder)
        return self._segments[-1]

    def wake(self) -> None:
        """Tell those who wait that there may be something for them."""
        for waiter in tuple(self.waiters):
            waiter()

    def read(self, offset: int, max_bytes: int, *, at_least_one: bool) -> bytes:
        """Whole batches from ``offset`` on, out of one segment. Raises OFFSET_OUT_OF_RANGE outside [start, next]."""
        self._check_range(offset)
        if offset == self.next_offset:
            return b""
        return self._segment_of(offset).read(offset, max_bytes, at_least_one=at_least_one)

    def bytes_from(self, offset: int) -> int:
        """Bytes that a fetch from ``offset`` could get. Raises OFFSET_OUT_OF_RANGE outside [start, next]."""
        self._check_range(offset)
        return self._segment_of(offset).bytes_from(offset)

    def is_far_behind(self, offset: int) -> bool:
        """Whether a read from ``offset`` ends before the log does, because its segment is complete and newer ones follow."""
        return self._segment_of(offset) is not self._segments[-1]

    def _check_range(self, offset: int) -> None:
        if not self.start_offset <= offset <= self.next_offset:
            raise ProtocolError(ErrorCode.OFFSET_OUT_OF_RANGE, f"offset {offset} is outside [{self.start_offset}, {self.next_offset}]")

    def _segment_of(self, offset: int) -> Segment:
        return self._segments[max(bisect_right(self._segments, offset, key=lambda segment: segment.base_offset) - 1, 0)]

    @property
    def newest_ms(self) -> int:
        """Largest timestamp of the batches from log start on; -1 if there are none."""
        return max(segment.newest_from(self.start_offset) for segment in self._segments)

    def batches_reaching(self, timestamp_ms: int) -> Iterator[bytes]:
        """Batches from the first that may hold a record at or after this time, in offset order."""
        return chain.from_iterable(segment.batches_reaching(timestamp_ms, self.start_offset) for segment in self._segments)

    def delete_before(self, offset: int) -> int:
        """Move log start up to ``offset`` (-1: to the end), durably; returns the new log start.

        Raises OFFSET_OUT_OF_RANGE, or KAFKA_STORAGE_ERROR with log start where it was.
        """
        target = self.next_offset if offset == -1 else offset
        if not 0 <= target <= self.next_offset:
            raise ProtocolError(ErrorCode.OFFSET_OUT_OF_RANGE, f"offset {offset} is outside [0, {self.next_offset}]")
        if target > self.start_offset:
            try:
                self._move_start(target)
            except OSError as error:
                raise ProtocolError(ErrorCode.KAFKA_STORAGE_ERROR, f"cannot move the start of {self.folder}: {error}") from error
        return self.start_offset

    def _move_start(self, offset: int) -> None:
        write_json(self._start_file, {"log_start_offset": offset})
        self.start_offset = offset
        self._delete_before_start()
        self.wake()

    def _delete_before_start(self) -> None:
        """Give the space back. A disk that refuses is logged: log start is durable already, and retention tries again."""
        try:
            self._drop_segments()
        except OSError:
            logger.exception("segments of %s before offset %d cannot be deleted", self.folder, self.start_offset)

    def _drop_segments(self) -> None:
        if self._segments[-1].size_bytes and self.next_offset <= self.start_offset:
            self.roll()
        while len(self._segments) > 1 and self._segments[1].base_offset <= self.start_offset:
            self._segments.pop(0).delete()

    def apply_retention(self, oldest_ms: int | None, max_bytes: int | None, read_until: int | None = None) -> None:
        """Delete whole segments that are too old, or too many for ``max_bytes``, all below ``read_until`` if that is given.

        The last segment is sealed first if it is too old.
        """
        self._delete_before_start()
        last = self._segments[-1]
        if oldest_ms is not None and last.size_bytes and last.newest_ms < oldest_ms:
            self.roll()
        surplus_bytes = self.size_bytes - max_bytes if max_bytes is not None else 0
        keep_from = self.start_offset
        for segment, following in zip(self._segments, self._segments[1:], strict=False):
            surplus_bytes -= segment.size_bytes
            is_old = oldest_ms is not None and segment.newest_ms < oldest_ms
            if read_until is not None and following.base_offset > read_until:
                break
            if not is_old and (max_bytes is None or surplus_bytes < 0):
                break
            keep_from = following.base_offset
        if keep_from > self.start_offset:
            logger.info("retention moves the start of %s from %d to %d", self.folder, self.start_offset, keep_from)
            self._move_start(keep_from)

    def close(self) -> None:
        """Force everything to disk and let go of the files."""
        for segment in self._segments[-1:]:
            segment.sync()
            sync_folder(self.folder)
        for segment in self._segments:
            segment.close()

    def delete(self) -> None:
        """Remove the files and wake whoever waits."""
        for segment in self._segments:
            segment.delete()
        self.wake()
