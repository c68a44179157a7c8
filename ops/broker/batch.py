"""Header of a record batch, format v2: what a broker must know of a batch without decoding its records.

A batch is opaque bytes to the broker: the records stay compressed, and only the first 61 bytes are read. The CRC covers bytes 21
to the end, so base offset (0-7) and leader epoch (12-15) may be rewritten without touching it. Cost: one struct unpack, one CRC-32C
pass (hardware speed). Source: https://kafka.apache.org/documentation/#recordbatch
"""

import struct
from typing import NamedTuple

from crc32c import crc32c

from ops.broker.codes import ErrorCode, ProtocolError

HEADER = struct.Struct(">qiibIhiqqqhii")
"""The fields of ``BatchHeader``, in its order."""
HEADER_BYTES = HEADER.size
LENGTH_PREFIX_BYTES = 12
"""Base offset and length: what the ``length`` field does not count."""
CRC_FROM = 21
MAGIC_AT = 16
CODEC_MASK = 0x07
ZSTD = 4
TRANSACTIONAL_BIT = 0x10
CONTROL_BIT = 0x20
NO_PRODUCER = -1
_PLACE, _EPOCH = struct.Struct(">q"), struct.Struct(">i")


class BatchHeader(NamedTuple):
    """The 61 bytes, decoded. Offsets are absolute, times are milliseconds since 1970."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    num_records: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole batch on disk and on the wire."""
        return self.length + LENGTH_PREFIX_BYTES

    @property
    def last_sequence(self) -> int:
        """Sequence number of the last record; sequences wrap at 2**31."""
        return (self.base_sequence + self.last_offset_delta) & 0x7FFFFFFF


def read_header(data: bytes | bytearray | memoryview, at: int = 0) -> BatchHeader:
    """Decode the header at ``at``; the caller has made sure that 61 bytes are there."""
    return BatchHeader._make(HEADER.unpack_from(data, at))


def crc_matches(batch: bytes | bytearray | memoryview, header: BatchHeader) -> bool:
    """Whether the bytes of the batch are those that the producer summed up."""
    return crc32c(memoryview(batch)[CRC_FROM : header.size_bytes]) == header.crc


def place(batch: bytes, base_offset: int, leader_epoch: int) -> tuple[bytes, memoryview]:
    """The batch at its offset in our log, as two buffers: its rewritten first 16 bytes, and the rest, uncopied."""
    head = _PLACE.pack(base_offset) + batch[8:12] + _EPOCH.pack(leader_epoch)
    return head, memoryview(batch)[16:]


def check_produced(records: bytes | None, version: int) -> BatchHeader:
    """Header of the one batch that a Produce request (of this version) holds for a partition.

    Raises ProtocolError as Apache Kafka answers: no batch, more than one, an old message format, an inconsistent header or zstd before
    version 7 is INVALID_RECORD or UNSUPPORTED_COMPRESSION_TYPE; bytes that do not match their CRC are CORRUPT_MESSAGE.
    """
    if not records or len(records) <= MAGIC_AT:
        raise ProtocolError(ErrorCode.INVALID_RECORD, "a Produce request must hold exactly one record batch per partition")
    if records[MAGIC_AT] != 2:
        raise ProtocolError(ErrorCode.INVALID_RECORD, f"message format v{records[MAGIC_AT]} is not supported; send record batches (v2)")
    if len(records) < HEADER_BYTES:
        raise ProtocolError(ErrorCode.CORRUPT_MESSAGE, f"{len(records)} bytes are too few for a record batch")
    header = read_header(records)
    if header.size_bytes < len(records) and header.length >= HEADER_BYTES - LENGTH_PREFIX_BYTES:
        raise ProtocolError(ErrorCode.INVALID_RECORD, "a Produce request must hold exactly one record batch per partition")
    if header.size_bytes != len(records) or not crc_matches(records, header):
        raise ProtocolError(ErrorCode.CORRUPT_MESSAGE, "the record batch's bytes do not match its length and CRC")
    _check_fields(header, version)
    return header


def _check_fields(header: BatchHeader, version: int) -> None:
    if header.num_records <= 0 or header.last_offset_delta != header.num_records - 1:
        raise ProtocolError(ErrorCode.INVALID_RECORD, f"{header.num_records} records cannot end at offset delta {header.last_offset_delta}")
    if header.attributes & CONTROL_BIT:
        raise ProtocolError(ErrorCode.INVALID_RECORD, "clients may not write control records")
    if header.attributes & TRANSACTIONAL_BIT:
        raise ProtocolError(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "this broker has no transactions; use Apache Kafka for them")
    codec = header.attributes & CODEC_MASK
    if codec > ZSTD or (codec == ZSTD and version < 7):
        raise ProtocolError(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, f"compression codec {codec} is not allowed in Produce v{version}")
    if header.producer_id != NO_PRODUCER and header.base_sequence < 0:
        raise ProtocolError(ErrorCode.INVALID_RECORD, "an idempotent batch needs a base sequence")
