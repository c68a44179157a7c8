"""Encoder of Fetch responses that does not copy the records.

kafka-python's own encoder copies every record twice; at hundreds of MB/s that is most of a broker's time. The bytes are the same (a
test compares them for every version). Source: https://kafka.apache.org/protocol#The_Messages_Fetch
"""

import struct
import uuid
from typing import NamedTuple

from ops.broker.codes import ErrorCode
from ops.broker.dispatch import Buffer

FIRST_FLEXIBLE = 12
FIRST_WITH_TOPIC_ID = 13
_ERROR_AND_SESSION = struct.Struct(">hi")
_PARTITION = struct.Struct(">ihqq")
NO_TAGS = b"\x00"
NO_REPLICA = b"\xff\xff\xff\xff"
"""preferred_read_replica: -1."""


class FetchedPartition(NamedTuple):
    """What a fetch got of one partition."""

    partition: int
    code: ErrorCode
    high_watermark: int
    start_offset: int
    records: bytes


class FetchedTopic(NamedTuple):
    """What a fetch got of one topic; asked for by name before version 13, by id from then on."""

    name: str
    topic_id: uuid.UUID | None
    partitions: list[FetchedPartition]


def encode_fetch(version: int, code: ErrorCode, topics: list[FetchedTopic]) -> list[Buffer]:
    """Body of the response (versions 4 to 17) as buffers; the records are passed on as they are."""
    buffers: list[Buffer] = []
    head = bytearray(4)  # throttle_time_ms
    if version >= 7:
        head += _ERROR_AND_SESSION.pack(code, 0)
    head += _array_length(version, len(topics))
    for topic in topics:
        head += _topic_name(version, topic) + _array_length(version, len(topic.partitions))
        for partition in topic.partitions:
            head += _partition_head(version, partition)
            buffers += (bytes(head), partition.records)
            head = bytearray(NO_TAGS if version >= FIRST_FLEXIBLE else b"")
        head += NO_TAGS if version >= FIRST_FLEXIBLE else b""
    head += NO_TAGS if version >= FIRST_FLEXIBLE else b""
    return [*buffers, bytes(head)]


def _topic_name(version: int, topic: FetchedTopic) -> bytes:
    if version >= FIRST_WITH_TOPIC_ID:
        return topic.topic_id.bytes if topic.topic_id else bytes(16)
    name = topic.name.encode("utf-8")
    return (_varint(len(name) + 1) if version >= FIRST_FLEXIBLE else len(name).to_bytes(2, "big")) + name


def _partition_head(version: int, partition: FetchedPartition) -> bytes:
    """Everything of a partition up to its records; the last stable offset is the high watermark, for there are no transactions."""
    head = _PARTITION.pack(partition.partition, partition.code, partition.high_watermark, partition.high_watermark)
    if version >= 5:
        head += partition.start_offset.to_bytes(8, "big", signed=True)
    head += _array_length(version, 0)  # aborted_transactions
    if version >= 11:
        head += NO_REPLICA
    size_bytes = len(partition.records)
    return head + (_varint(size_bytes + 1) if version >= FIRST_FLEXIBLE else size_bytes.to_bytes(4, "big"))


def _array_length(version: int, length: int) -> bytes:
    return _varint(length + 1) if version >= FIRST_FLEXIBLE else length.to_bytes(4, "big")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
