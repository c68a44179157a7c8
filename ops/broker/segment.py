"""One segment file of a partition's log, with an index of its batches in memory.

Invariant: every byte below ``size_bytes`` belongs to a whole batch that was appended; nothing above it is ever read, so a torn write is
never served. The index holds 32 bytes per batch and is rebuilt from the batch headers when the file is opened (about 2 us per
batch; the last segment's CRCs are checked too, at memory speed).
"""

import mmap
import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path

from ops.broker.batch import HEADER_BYTES, LENGTH_PREFIX_BYTES, BatchHeader, crc_matches, place, read_header

SUFFIX = ".log"


class Segment:
    """Batches from ``base_offset`` on, in one file named after it."""

    def __init__(self, folder: Path, base_offset: int) -> None:
        self.base_offset = base_offset
        self.path = folder / f"{base_offset:020d}{SUFFIX}"
        self.next_offset = base_offset
        self.size_bytes = 0
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._offsets = array("q")
        self._positions = array("q")
        self._times_ms = array("q")
        self._newest_ms = array("q")
        """Running maximum of the batches' timestamps: sorted, so that a time can be searched for."""

    @property
    def newest_ms(self) -> int:
        """Largest record timestamp; -1 in an empty segment."""
        return self._newest_ms[-1] if self._newest_ms else -1

    def recover(self, *, verify_crc: bool, on_batch: Callable[[BatchHeader], None]) -> int:
        """Index what the file holds, up to the first byte that is not a whole batch; returns how many bytes follow that point."""
        file_bytes = os.fstat(self._fd).st_size
        if file_bytes:
            with mmap.mmap(self._fd, file_bytes, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
                for header in self._whole_batches(data, verify_crc):
                    self._index(header)
                    on_batch(header)
        return file_bytes - self.size_bytes

    def _whole_batches(self, data: memoryview, verify_crc: bool) -> Iterator[BatchHeader]:
        at = 0
        while at + HEADER_BYTES <= len(data):
            header = read_header(data, at)
            end = at + header.size_bytes
            is_whole = header.magic == 2 and header.length >= HEADER_BYTES - LENGTH_PREFIX_BYTES and end <= len(data)
            if not is_whole or header.base_offset != self.next_offset:
                return
            if verify_crc and not crc_matches(data[at:end], header):
                return
            yield header
            at = end

    def _index(self, header: BatchHeader) -> None:
        self._offsets.append(header.base_offset)
        self._positions.append(self.size_bytes)
        self._times_ms.append(header.max_timestamp)
        self._newest_ms.append(max(header.max_timestamp, self.newest_ms))
        self.size_bytes += header.size_bytes
        self.next_offset = header.base_offset + header.last_offset_delta + 1

    def append(self, batch: bytes, header: BatchHeader, leader_epoch: int) -> None:
        """Write a batch at ``next_offset`` under this epoch: when this returns, the bytes are with the operating system and survive our SIGKILL.

        Raises OSError with the file as it was before.
        """
        try:
            written = os.writev(self._fd, place(batch, self.next_offset, leader_epoch))
            if written != len(batch):
                raise OSError(f"only {written} of {len(batch)} bytes fitted into {self.path}; is the disk full?")
        except OSError:
            self.truncate()
            raise
        self._index(header._replace(base_offset=self.next_offset, leader_epoch=leader_epoch))

    def truncate(self) -> None:
        """Cut the file after its last whole batch."""
        os.ftruncate(self._fd, self.size_bytes)

    def read(self, offset: int, max_bytes: int, *, at_least_one: bool) -> bytes:
        """Whole batches from the one that holds ``offset``, at most ``max_bytes`` of them, or one if even that is larger and wanted."""
        first = max(bisect_right(self._offsets, offset) - 1, 0)
        start, end = self._positions[first], self.size_bytes
        if end - start > max_bytes:
            end = self._positions[max(bisect_right(self._positions, start + max_bytes) - 1, first)]
        if end == start and at_least_one:
            end = self._end_of(first)
        return self._pread(start, end - start)

    def _end_of(self, index: int) -> int:
        return self._positions[index + 1] if index + 1 < len(self._positions) else self.size_bytes

    def _pread(self, start: int, size_bytes: int) -> bytes:
        data = os.pread(self._fd, size_bytes, start)
        if len(data) != size_bytes:
            raise OSError(f"{self.path} ends before byte {start + size_bytes}; something outside the broker has shortened it")
        return data

    def bytes_from(self, offset: int) -> int:
        """Bytes of the batches from the one that holds ``offset`` to the end."""
        if offset >= self.next_offset:
            return 0
        return self.size_bytes - self._positions[max(bisect_right(self._offsets, offset) - 1, 0)]

    def batches_reaching(self, timestamp_ms: int, from_offset: int) -> Iterator[bytes]:
        """Batches from the first that may hold a record at or after this time and this offset; the caller stops at the first that does."""
        first = max(bisect_left(self._newest_ms, timestamp_ms), bisect_right(self._offsets, from_offset) - 1, 0)
        for index in range(first, len(self._offsets)):
            yield self._pread(self._positions[index], self._end_of(index) - self._positions[index])

    def newest_from(self, offset: int) -> int:
        """Largest timestamp among the batches from the one that holds ``offset``; -1 if there are none."""
        return max(self._times_ms[max(bisect_right(self._offsets, offset) - 1, 0) :], default=-1)

    def sync(self) -> None:
        """Force the file to the disk: done when the broker stops."""
        os.fsync(self._fd)

    def seal(self) -> None:
        """Force the file to the disk, but let no one wait for it: 64 MB may take a slow disk half a second."""
        threading.Thread(target=_sync_and_close, args=(os.dup(self._fd),), name="seal-segment").start()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def delete(self) -> None:
        """Remove the file."""
        self.close()
        self.path.unlink(missing_ok=True)


def _sync_and_close(handle: int) -> None:
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def segment_offsets(folder: Path) -> list[int]:
    """Base offsets of the segment files in this folder, in order."""
    return sorted(int(path.stem) for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit())
