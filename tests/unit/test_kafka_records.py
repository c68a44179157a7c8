"""One bad record never stops a partition: a batch is read to its end whatever one of its records is."""

import random
import struct
import tracemalloc
from typing import Any

import pytest
import zstandard
from crc32c import crc32c
from kafka import TopicPartition
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from pipelines.kafka.codecs import TooMuch, unpack
from pipelines.kafka.records import batches_of, partition_records
from schemas.headers import BAD_NAME, BROKEN_RECORD

BODY_FROM = DefaultRecordBatch.HEADER_STRUCT.size
MAX_UNPACKED = 2**20
CODECS = {1: gzip_encode, 2: snappy_encode, 3: lz4_encode, 4: zstd_encode}


class BytesName(str):
    """A header name that encodes to what no UTF-8 is."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        """Not UTF-8."""
        return b"\xffname\xfe"


def batch_of(records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]], codec: int = 0) -> bytearray:
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 2**20)
    for offset, (key, value, headers) in enumerate(records):
        builder.append(offset, 1_000 + offset, key, value, headers)
    return bytearray(builder.build())


def summed(data: bytearray) -> bytearray:
    """The batch with the CRC that belongs to its bytes."""
    struct.pack_into(">I", data, 17, crc32c(bytes(data[21:])))
    return data


def read(data: bytes | bytearray, base_offset: int = 100) -> list[Any]:
    data = bytearray(data)
    struct.pack_into(">q", data, 0, base_offset)
    batch = MemoryRecords(bytes(data)).next_batch()
    assert batch is not None and batch.validate_crc()
    return list(batches_of(MAX_UNPACKED)(bytes(data)))


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_a_header_name_that_is_not_utf8_marks_its_record_only(codec: int) -> None:
    bad: list[tuple[str, bytes | None]] = [("good", b"1"), (BytesName("x"), None)]
    records = read(batch_of([(b"a", b"1" * 500, []), (b"b", b"2" * 500, bad), (None, None, [("h", None)])], codec))
    assert [(record.offset, record.key, record.value) for record in records] == [(100, b"a", b"1" * 500), (101, b"b", b"2" * 500), (102, None, None)]
    assert [record.headers for record in records] == [[], [("good", b"1"), (BAD_NAME + "\\xffname\\xfe", None)], [("h", None)]]


def test_lengths_that_do_not_add_up_cost_their_record_only() -> None:
    data = batch_of([(b"a", b"one", []), (b"b", b"two", []), (b"c", b"three", [])])
    at = data.index(b"two") - 1
    data[at] = 2 * 50  # the value's length
    records = read(summed(data))
    assert [(record.offset, record.value) for record in records if not record.headers] == [(100, b"one"), (102, b"three")]
    assert records[1].headers == [(BROKEN_RECORD, None)]
    assert b"two" in records[1].value


def test_where_no_record_can_be_found_any_more_every_offset_is_broken() -> None:
    data = batch_of([(b"a", b"one", []), (b"b", b"two", []), (b"c", b"three", [])])
    at = data.index(b"two") - 7
    data[at : at + 1] = b"\x7f"  # the record's own length
    records = read(summed(data))
    assert [record.offset for record in records] == [100, 101, 102]
    assert [bool(record.headers) for record in records] == [False, True, True]


def test_a_batch_that_does_not_decompress_is_broken_and_passed() -> None:
    data = batch_of([(b"a", b"x" * 1000, []), (b"b", b"x" * 1000, [])], codec=1)
    data[BODY_FROM + 12] ^= 0xFF
    records = read(summed(data))
    assert [(record.offset, [name for name, _ in record.headers]) for record in records] == [(100 + i, [BROKEN_RECORD]) for i in range(2)]
    assert all(record.headers[0][1] for record in records), "each says why"


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_that_unpacks_to_too_much_is_broken_before_it_takes_memory(codec: int) -> None:
    data = batch_of([(None, b"x" * 100_000, []), (None, b"y", [])], codec)
    assert [record.headers for record in read(data)] == [[], []]
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 2**30)
    for offset in range(2):
        builder.append(offset, 0, None, bytes(60 * 2**20 if offset else 1), [])
    bomb = bytearray(builder.build())
    tracemalloc.start()
    records = read(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [[name for name, _ in record.headers] for record in records] == [[BROKEN_RECORD]] * 2
    assert b"max_batch_unpacked_bytes" in records[0].value
    assert peak < 8 * len(bomb) + 4 * MAX_UNPACKED


@pytest.mark.parametrize(("window_log", "is_taken"), [(27, True), (28, True), (29, False)])
def test_a_zstd_window_is_as_wide_as_what_may_come_out_or_its_refusal_says_what_to_do(window_log: int, is_taken: bool) -> None:
    """By itself zstd takes 2**27 and says "Frame requires too much memory" of the others."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(b"the mill turns " * 1000) + compressor.flush()
    if is_taken:
        assert unpack(4, packed, 2**28) == b"the mill turns " * 1000
    else:
        with pytest.raises(ValueError, match=r"zstd window of 536,870,912 bytes is wider .*max_batch_unpacked_bytes.*level below 20"):
            unpack(4, packed, 2**28)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000])
def test_codecs_give_what_kafka_python_packed_up_to_the_limit(codec: int, size: int) -> None:
    data = random.Random(1).randbytes(size // 2) + bytes(size - size // 2)
    packed = CODECS[codec](data)
    assert unpack(codec, packed, 100_000) == data
    assert unpack(codec, memoryview(packed), max(1, size)) == data
    if size > 1:
        with pytest.raises(TooMuch):
            unpack(codec, packed, size - 1)


def test_both_forms_of_snappy_and_gzip_in_members_are_read() -> None:
    assert unpack(2, snappy_encode(b"abc" * 99, xerial_compatible=False), 1_000) == b"abc" * 99
    assert unpack(1, gzip_encode(b"abc") + gzip_encode(b"def"), 6) == b"abcdef"
    with pytest.raises(TooMuch):
        unpack(2, b"\xff\xff\xff\xff\x0f" + b"x", 1_000)  # says that it unpacks to 4 GB


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_batches_never_take_more_than_the_limit(codec: int) -> None:
    rng = random.Random(codec)
    good = CODECS[codec](bytes(5_000) + rng.randbytes(500))
    for _ in range(300):
        data = bytearray(good)
        data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert len(unpack(codec, bytes(data), 6_000)) <= 6_000
        except Exception as error:
            assert not isinstance(error, MemoryError)


def test_every_mutation_is_read_in_ascending_offsets_within_the_batch() -> None:
    rng = random.Random(4)
    whole = [(b"k%d" % i, b"v" * rng.randrange(40), [("h", b"x"), (BytesName("y") if i == 3 else "z", None)]) for i in range(6)]
    good = batch_of(whole)  # type: ignore[arg-type]
    for _ in range(3_000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(BODY_FROM, len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(BODY_FROM, len(data)) :]
            struct.pack_into(">i", data, 8, len(data) - 12)
        offsets = [record.offset for record in read(summed(data))]
        assert offsets == sorted(set(offsets))
        assert all(100 <= offset <= 105 for offset in offsets)


@pytest.mark.parametrize("length", [5, 40])
def test_a_batch_whose_length_is_wrong_names_its_partition(length: int) -> None:
    data = batch_of([(None, b"1", [])])
    struct.pack_into(">i", data, 8, length)
    key = TopicPartition("some", 7)
    found = partition_records(MAX_UNPACKED)(0, key, MemoryRecords(bytes(data[: 12 + length])))
    with pytest.raises(CorruptRecordError, match=r"TopicPartition\(topic='some', partition=7\)"):
        found.take(10)
