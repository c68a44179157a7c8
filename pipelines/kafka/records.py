"""Record batches of which one record is broken: the others are read, and the broken one arrives as what it is.

kafka-python gives up the whole fetch when one header's name is not UTF-8 or one record's lengths do not add up, and would do so again and
again: one bad record would stop its partition for good. Here such a record becomes one with a marked header (schemas.headers), which
decoding turns into a dead letter. So do all records of a batch that unpacks to more than is allowed, or not at all.

Invariant: of a batch whose CRC is right, every record comes out once, in strictly ascending offsets within the batch's range, and none
raises. What the CRC does not vouch for is not touched: that is the broker's or the disk's fault, and stays an error.
Cost: nothing for good records, which kafka-python decodes. Source: https://kafka.apache.org/documentation/#recordbatch
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch
from kafka.record.util import decode_varint

from pipelines.kafka.codecs import unpack
from pipelines.kafka.legacy import messages_of
from schemas.envelope import Headers
from schemas.headers import BAD_NAME, BROKEN_RECORD

SHOWN_BYTES = 2**20
"""Most bytes of a broken record that go into its dead letter."""
_BROKEN = (ValueError, IndexError, OverflowError, struct.error, CorruptRecordError)
"""What kafka-python raises within a record; UnicodeDecodeError is a ValueError."""


class _Parts(NamedTuple):
    offset_delta: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class TolerantBatch(DefaultRecordBatch):
    """A batch that is iterated to its end whatever its records are, and unpacked to at most ``max_unpacked_bytes``."""

    __slots__ = ()
    max_unpacked_bytes: ClassVar[int]

    def __iter__(self) -> Iterator[Any]:
        try:
            self._maybe_uncompress()
        except UnsupportedCodecError:
            raise
        except Exception as error:  # noqa: BLE001  (each codec's library has errors of its own)
            yield from self._lost(-1, str(error).encode(), str(error).encode())
            return
        last_delta = -1
        for _ in range(self._num_records):
            start = self._pos
            record = self._next_record(start)
            if record is None:
                yield from self._lost(last_delta, bytes(self._buffer[start : start + SHOWN_BYTES]))
                return
            delta = record.offset - self.base_offset
            if not last_delta < delta <= self.last_offset_delta:
                delta = last_delta + 1
                if delta > self.last_offset_delta:
                    return
                record = self._broken(delta, bytes(self._buffer[start : min(self._pos, start + SHOWN_BYTES)]))
            last_delta = delta
            yield record

    def _maybe_uncompress(self) -> None:
        if self._decompressed:  # type: ignore[has-type]
            return
        if self.compression_type != self.CODEC_NONE:
            self._assert_has_codec(self.compression_type)
            packed = memoryview(self._buffer)[self._pos :]  # type: ignore[has-type]
            self._buffer = bytearray(unpack(self.compression_type, packed, self.max_unpacked_bytes))  # type: ignore[misc]
            self._pos = 0  # type: ignore[misc]
        self._decompressed = True  # type: ignore[misc]

    def __next__(self) -> Any:
        """The marker of a control batch; None if it is none that can be read."""
        try:
            return super().__next__()
        except _BROKEN:
            return None

    def _next_record(self, start: int) -> Any:
        """The record at ``start``, marked if it is broken; None if even its length is wrong. Moves behind it."""
        try:
            record = self._read_msg()
            if self._pos <= len(self._buffer):
                return record
        except _BROKEN:
            pass
        try:
            length, begin = decode_varint(self._buffer, start)
        except _BROKEN:
            return None
        end = begin + length
        if length < 0 or end > len(self._buffer):
            return None
        self._pos = end  # type: ignore[misc]
        body = bytes(self._buffer[begin:end])
        try:
            parts = _read_parts(body)
        except _BROKEN:
            return self._broken(-1, body[:SHOWN_BYTES])
        return self._record(parts)

    def _lost(self, last_delta: int, found: bytes, why: bytes | None = None) -> Iterator[Any]:
        """A broken record for each offset of the batch from which on nothing can be read; the first has the bytes, each says why if that is known."""
        for delta in range(last_delta + 1, self.last_offset_delta + 1):
            yield self._broken(delta, found, why)
            found = b""

    def _broken(self, offset_delta: int, found: bytes, why: bytes | None = None) -> Any:
        return self._record(_Parts(offset_delta, None, found, [(BROKEN_RECORD, why)]))

    def _record(self, parts: _Parts) -> Any:
        offset = self.base_offset + parts.offset_delta
        size = len(parts.value or b"")
        return DefaultRecord(size, offset, self.max_timestamp, self.timestamp_type, parts.key, parts.value, parts.headers)


def _read_parts(body: bytes) -> _Parts:
    """A record's parts, with names that are not UTF-8 escaped. Raises one of _BROKEN where the lengths do not add up."""
    position = decode_varint(body, decode_varint(body, 0)[1])[1]  # attributes, time
    offset_delta, position = decode_varint(body, position)
    key, position = _read_bytes(body, position)
    value, position = _read_bytes(body, position)
    num_headers, position = decode_varint(body, position)
    if num_headers < 0:
        raise ValueError(f"{num_headers} headers")
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(num_headers):
        name, position = _read_bytes(body, position)
        header, position = _read_bytes(body, position)
        if name is None:
            raise ValueError("a header without a name")
        headers.append((_readable(name), header))
    if position != len(body):
        raise ValueError(f"{len(body) - position} bytes are left over")
    return _Parts(offset_delta, key, value, headers)


def _read_bytes(body: bytes, position: int) -> tuple[bytes | None, int]:
    length, position = decode_varint(body, position)
    if length < 0:
        return None, position
    if position + length > len(body):
        raise ValueError(f"{length} bytes do not fit into the record")
    return body[position : position + length], position + length


def _readable(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return BAD_NAME + name.decode("utf-8", "backslashreplace")


@lru_cache
def batches_of(max_unpacked_bytes: int) -> type[TolerantBatch]:
    """The class of batches with this limit; a batch itself has no place for it."""
    return type("LimitedBatch", (TolerantBatch,), {"__slots__": (), "max_unpacked_bytes": max_unpacked_bytes})


@lru_cache
def partition_records(max_unpacked_bytes: int) -> type[Fetcher.PartitionRecords]:
    """What a consumer's fetcher makes of one partition's part of a fetch; to be put in its ``_fetcher.PartitionRecords``."""
    limited_batch, limited_messages = batches_of(max_unpacked_bytes), messages_of(max_unpacked_bytes)

    class TolerantRecords(MemoryRecords):
        """A fetch whose batches (format v2) and messages (v0, v1) are tolerant."""

        __slots__ = ()

        def next_batch(self, *arguments: Any) -> Any:
            batch = super().next_batch(*arguments)
            if type(batch) is DefaultRecordBatch:
                batch.__class__ = limited_batch  # the same slots: nothing is copied
            elif type(batch) is LegacyRecordBatch:
                batch.__class__ = limited_messages
            return batch

    class TolerantPartitionRecords(Fetcher.PartitionRecords):
        """Fetched records, as the consumer keeps them."""

        def _unpack_records(self, tp: Any, records: MemoryRecords, *deserializers: Any) -> Iterator[Any]:
            records.__class__ = TolerantRecords
            try:
                yield from super()._unpack_records(tp, records, *deserializers)
            except (CorruptRecordError, UnsupportedCodecError, struct.error) as error:
                if f"{tp}" in str(error):
                    raise
                kind = UnsupportedCodecError if isinstance(error, UnsupportedCodecError) else CorruptRecordError
                raise kind(f"{tp}: {error}") from error

    return TolerantPartitionRecords
