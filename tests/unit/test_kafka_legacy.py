"""Message sets of format v0 and v1: read like kafka-python reads them, within the limit, and to their end."""

import random
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.codec import gzip_encode, lz4_encode, lz4_encode_old_kafka, snappy_encode
from kafka.record import MemoryRecords
from kafka.record.legacy_records import LegacyRecordBatch, LegacyRecordBatchBuilder

from pipelines.kafka.legacy import messages_of
from pipelines.kafka.records import partition_records
from schemas.headers import BROKEN_RECORD

MAX_UNPACKED = 2**20
LAST = 7
CODECS = {1: gzip_encode, 2: snappy_encode, 3: lz4_encode}


def message(magic: int, offset: int, value: bytes, codec: int = 0, length: int | None = None) -> bytes:
    """One message, with its CRC; ``length`` is what it says instead of its length."""
    body = struct.pack(">bb", magic, codec) + (struct.pack(">q", 1_000) if magic else b"") + struct.pack(">ii", -1, len(value)) + value
    said = len(body) + 4 if length is None else length
    return struct.pack(">qiI", offset, said, zlib.crc32(body)) + body


def wrapper(magic: int, inside: bytes, codec: int) -> bytes:
    pack = lz4_encode_old_kafka if codec == 3 and magic == 0 else CODECS[codec]
    return message(magic, LAST, pack(inside), codec)


def read(data: bytes) -> list[Any]:
    batch = MemoryRecords(data).next_batch()
    assert type(batch) is LegacyRecordBatch and batch.validate_crc()
    batch.__class__ = messages_of(MAX_UNPACKED)
    return list(batch)


@pytest.mark.parametrize("codec", [0, 1, 2, 3])
@pytest.mark.parametrize("magic", [0, 1])
def test_messages_are_those_that_kafka_python_reads(magic: int, codec: int) -> None:
    builder = LegacyRecordBatchBuilder(magic, codec, 2**20)
    for offset in range(3 if codec else 1):
        builder.append(offset, 1_000 + offset, b"key", f"value {offset}".encode() * 50)
    data = bytes(builder.build())
    expected = [(record.offset, record.timestamp, record.key, record.value) for record in MemoryRecords(data).next_batch()]
    if codec:
        data = struct.pack(">q", 2) + data[8:]  # a wrapper stands at the offset of its last message, as a broker puts it
    assert [(record.offset, record.timestamp, record.key, record.value) for record in read(data)] == expected


@pytest.mark.parametrize("codec", [1, 2, 3])
@pytest.mark.parametrize("magic", [0, 1])
def test_a_wrapper_that_unpacks_to_too_much_is_one_broken_record_before_it_takes_memory(magic: int, codec: int) -> None:
    data = wrapper(magic, message(magic, LAST, bytes(64 * 2**20)), codec)
    tracemalloc.start()
    try:
        records = read(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * MAX_UNPACKED
    finally:
        tracemalloc.stop()
    assert [(record.offset, record.headers) for record in records] == [(LAST, [(BROKEN_RECORD, None)])]
    assert b"formats.max_batch_unpacked_bytes" in records[0].value


def test_many_small_messages_take_no_multiple_of_their_bytes() -> None:
    inside = b"".join(message(0, offset, b"") for offset in range(20_000))
    batch = MemoryRecords(message(0, 20_000, gzip_encode(inside), 1)).next_batch()
    batch.__class__ = messages_of(MAX_UNPACKED)
    tracemalloc.start()
    try:
        assert sum(1 for record in batch if not record.headers) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 5 * len(inside)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("inside", "read_before", "why"),
    [
        (message(1, 0, b"one") + message(1, 1, b"two", length=-12), [], b"-12 bytes"),  # its end is its beginning
        (message(1, 0, b"one") + message(1, 1, b"two", length=500), [], b"500 bytes"),
        (message(1, 0, b"one") + message(1, 1, b"two")[:-1] + b"!", [LAST - 1], b"CRC"),
        (message(1, 5, b"one") + message(1, 3, b"two"), [], b"offset 9"),
        (b"", [], b""),
    ],
)
def test_what_is_wrong_inside_a_wrapper_costs_what_follows_in_it_only(inside: bytes, read_before: list[int], why: bytes) -> None:
    *good, broken = read(wrapper(1, inside, 1))
    assert [record.offset for record in good] == read_before
    assert (broken.offset, broken.headers) == (LAST, [(BROKEN_RECORD, None)])
    assert why in broken.value


def test_no_mutation_raises_or_leads_behind_the_wrapper() -> None:
    rng = random.Random(3)
    inside = b"".join(message(1, offset, b"x" * offset) for offset in range(5))
    for _ in range(300):
        changed = bytearray(inside)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        offsets = [record.offset for record in read(wrapper(1, bytes(changed), 1))]
        assert offsets == sorted(set(offsets)) and offsets[-1] == LAST


def test_a_consumer_goes_on_behind_a_broken_wrapper() -> None:
    data = wrapper(1, bytes(MAX_UNPACKED * 2), 1) + message(1, LAST + 1, b"after")
    found = partition_records(MAX_UNPACKED)(0, TopicPartition("t", 0), MemoryRecords(data)).take()
    assert [(record.offset, bool(record.headers)) for record in found] == [(LAST, True), (LAST + 1, False)]
    assert found[1].value == b"after"
