"""Message sets from before Kafka 0.11 (formats v0 and v1), which old topics still hold: read to their end whatever is in them, in bounded memory.

A compressed message is a wrapper around others. kafka-python unpacks it whole, follows lengths that lead backwards for ever, and goes on behind
whatever offset it finds inside. Here a wrapper unpacks to at most ``max_unpacked_bytes``; what is wrong with it, from the first
message inside that cannot be read, becomes one broken record (schemas.headers) at the wrapper's own offset, which is that of its last message.

Invariant: as in records.py. Cost: a CRC-32 of each message more than kafka-python.
Source: https://kafka.apache.org/documentation/#messageset
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import xxhash
from kafka.record.default_records import DefaultRecord
from kafka.record.legacy_records import LegacyRecordBatch

from pipelines.kafka.codecs import unpack
from schemas.headers import BROKEN_RECORD

_LZ4_CONTENT_SIZE = 1 << 3
"""Bit of a frame's first descriptor byte: eight bytes more until the header's checksum."""


class TolerantMessages(LegacyRecordBatch):
    """One message, or the wrapper of several."""

    __slots__ = ()
    max_unpacked_bytes: ClassVar[int]

    def __iter__(self) -> Iterator[Any]:
        last = -1
        try:
            for record in super().__iter__():
                if self.compression_type:
                    self._check(record, last)
                last = record.offset
                yield record
        except Exception as error:  # noqa: BLE001  (each codec's library has errors of its own, and kafka-python asserts)
            if last < self._offset:
                found = str(error) or type(error).__name__
                yield DefaultRecord(len(found), self._offset, self._timestamp, self.timestamp_type, None, found.encode(), [(BROKEN_RECORD, None)])

    def _check(self, record: Any, last: int) -> None:
        """Raise ValueError for a message inside a wrapper that does not belong there."""
        if not last < record.offset <= self._offset:
            raise ValueError(f"a message at offset {record.offset} stands in a message set that ends at {self._offset}")
        if not record.validate_crc():
            raise ValueError(f"the message at offset {record.offset} does not match its CRC")

    def _decompress(self, key_offset: int) -> bytes:
        _, value = self._read_key_value(key_offset)
        codec = self.compression_type
        if value is None or codec > self.CODEC_LZ4:
            raise ValueError(f"a compressed message (codec {codec}) without anything to unpack")
        return unpack(codec, _mended(value) if codec == self.CODEC_LZ4 and self.magic == 0 else value, self.max_unpacked_bytes)

    def _read_all_headers(self) -> "_Headers":
        """Headers of the messages in a wrapper, and where they stand. Raises ValueError where their lengths do not add up."""
        at, places = 0, array("q")
        least = self.RECORD_OVERHEAD_V1 if self.magic else self.RECORD_OVERHEAD_V0
        while at < len(self._buffer):
            header = self._read_header(at)
            end = at + self.LOG_OVERHEAD + header[1]
            if header[1] < least or end > len(self._buffer):
                raise ValueError(f"a message of {header[1]} bytes does not fit into its message set")
            places.append(at)
            at = end
        return _Headers(self, places)


class _Headers(Sequence[tuple[tuple[Any, ...], int]]):
    """(header, where it stands) of each message, read when it is asked for: a list of them takes ten times the bytes of small messages."""

    def __init__(self, messages: TolerantMessages, places: "array[int]") -> None:
        self._messages = messages
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        return self._messages._read_header(self._places[index]), self._places[index]


def _mended(frame: bytes) -> bytes:
    """An LZ4 frame of Kafka 0.8 or 0.9 with the header's checksum that the format asks for: Kafka summed up the wrong bytes."""
    at = 14 if frame[4] & _LZ4_CONTENT_SIZE else 6
    checksum = xxhash.xxh32(frame[4:at]).intdigest() >> 8 & 0xFF
    return frame[:at] + bytes([checksum]) + frame[at + 1 :]


@lru_cache
def messages_of(max_unpacked_bytes: int) -> type[TolerantMessages]:
    """The class of messages with this limit; a message itself has no place for it."""
    return type("LimitedMessages", (TolerantMessages,), {"__slots__": (), "max_unpacked_bytes": max_unpacked_bytes})
