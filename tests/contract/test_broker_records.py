"""Produce, Fetch and ListOffsets on the wire: what the embedded broker answers is what Apache Kafka answers."""

import struct
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kafka.record import MemoryRecords

from tests.contract.conftest import KafkaUnderTest
from tests.contract.wire import Wire, batch

OUT_OF_RANGE, CORRUPT, UNKNOWN_TOPIC, TOO_LARGE, BAD_ACKS = 1, 2, 3, 10, 21
BAD_TIMESTAMP, OUT_OF_ORDER, OLD_EPOCH, BAD_CODEC, INVALID_RECORD = 32, 45, 47, 76, 87


@pytest.fixture
def topic(wire: Wire, topic_prefix: str) -> str:
    """A topic of one partition."""
    wire.create_topic(topic_prefix)
    return topic_prefix


def values_in(records: bytes) -> list[bytes]:
    found = []
    batches = MemoryRecords(records)
    while (part := batches.next_batch()) is not None:
        found += [record.value for record in part]
    return found


def offsets_in(records: bytes) -> list[int]:
    found = []
    batches = MemoryRecords(records)
    while (part := batches.next_batch()) is not None:
        found += [record.offset for record in part]
    return found


@pytest.mark.parametrize("acks", [1, -1])
def test_produced_records_get_dense_offsets_and_come_back_in_order(wire: Wire, topic: str, acks: int) -> None:
    assert wire.produce(topic, batch([b"a", b"b", b"c"]), acks=acks).base_offset == 0
    assert wire.produce(topic, batch([b"d"]), acks=acks).base_offset == 3
    answer = wire.fetch(topic, 0)
    assert (answer.error_code, answer.high_watermark, answer.last_stable_offset, answer.log_start_offset) == (0, 4, 4, 0)
    assert values_in(answer.records) == [b"a", b"b", b"c", b"d"]
    assert offsets_in(answer.records) == [0, 1, 2, 3]


def test_acks_0_is_appended_and_not_answered(wire: Wire, topic: str) -> None:
    wire.produce(topic, batch([b"quiet"]), acks=0)
    assert values_in(wire.fetch(topic, 0, max_wait_ms=5_000).records) == [b"quiet"]


def test_a_failed_produce_with_acks_0_closes_the_connection(wire: Wire) -> None:
    wire.produce("no-such-topic-here", batch([b"x"]), acks=0)
    with pytest.raises(ConnectionError):
        wire.receive_frame()


def test_acks_other_than_0_1_all_are_refused(wire: Wire, topic: str) -> None:
    assert wire.produce(topic, batch([b"x"]), acks=2).error_code == BAD_ACKS


@pytest.mark.parametrize("codec", range(5), ids=["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_codec_is_passed_through_untouched(wire: Wire, topic: str, codec: int) -> None:
    sent = batch([b"\xe6\xb0\xb4" * 100] * 10, codec=codec)
    assert wire.produce(topic, sent).error_code == 0
    received = wire.fetch(topic, 0).records
    assert received[16:] == sent[16:]
    assert values_in(received) == [b"\xe6\xb0\xb4" * 100] * 10


def test_a_flipped_bit_is_a_corrupt_message_and_not_appended(wire: Wire, topic: str) -> None:
    sent = bytearray(batch([b"precious"]))
    sent[-3] ^= 1
    assert wire.produce(topic, bytes(sent)).error_code == CORRUPT
    assert wire.list_offset(topic, -1).offset == 0


def test_old_message_formats_are_refused(wire: Wire, topic: str) -> None:
    for magic in (0, 1):
        assert wire.produce(topic, batch([b"old"], magic=magic)).error_code == INVALID_RECORD


def test_exactly_one_batch_per_partition_is_taken(wire: Wire, topic: str) -> None:
    assert wire.produce(topic, batch([b"a"]) + batch([b"b"])).error_code == INVALID_RECORD
    assert wire.produce(topic, b"").error_code == INVALID_RECORD


def test_zstd_needs_produce_version_7(wire: Wire, topic: str) -> None:
    assert wire.produce(topic, batch([b"z" * 1_000], codec=4), version=6).error_code == BAD_CODEC


def test_a_batch_above_max_message_bytes_is_too_large_and_the_topic_config_decides(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix, max_message_bytes="2000")
    assert wire.produce(topic_prefix, batch([b"x" * 3_000])).error_code == TOO_LARGE
    assert wire.produce(topic_prefix, batch([b"x" * 1_000])).error_code == 0


def test_a_timestamp_far_ahead_is_refused(wire: Wire, topic: str) -> None:
    tomorrow = int(time.time() * 1000) + 86_400_000
    assert wire.produce(topic, batch([b"x"], timestamps=[tomorrow])).error_code == BAD_TIMESTAMP


def test_unknown_topics_and_partitions_are_named_so(wire: Wire, topic: str) -> None:
    assert wire.produce(topic, batch([b"x"]), partition=7).error_code == UNKNOWN_TOPIC
    assert wire.produce("no-such-topic-here", batch([b"x"])).error_code == UNKNOWN_TOPIC
    assert wire.fetch("no-such-topic-here", 0).error_code == UNKNOWN_TOPIC
    assert wire.list_offset("no-such-topic-here", -1).error_code == UNKNOWN_TOPIC


def test_a_repeated_idempotent_batch_gets_its_first_offset_and_is_not_appended_twice(wire: Wire, topic: str) -> None:
    producer_id = wire.init_producer_id().producer_id
    first = batch([b"a", b"b"], producer=(producer_id, 0, 0))
    second = batch([b"c"], producer=(producer_id, 0, 2))
    assert [wire.produce(topic, sent).base_offset for sent in (first, second, first, second)] == [0, 2, 0, 2]
    assert wire.list_offset(topic, -1).offset == 3


def test_a_gap_in_the_sequence_is_refused(wire: Wire, topic: str) -> None:
    producer_id = wire.init_producer_id().producer_id
    assert wire.produce(topic, batch([b"a"], producer=(producer_id, 0, 0))).error_code == 0
    assert wire.produce(topic, batch([b"c"], producer=(producer_id, 0, 2))).error_code == OUT_OF_ORDER


def test_a_new_epoch_starts_at_zero_and_fences_the_old_one(wire: Wire, topic: str) -> None:
    producer_id = wire.init_producer_id().producer_id
    assert wire.produce(topic, batch([b"a"], producer=(producer_id, 0, 0))).error_code == 0
    assert wire.produce(topic, batch([b"x"], producer=(producer_id, 1, 5))).error_code == OUT_OF_ORDER
    assert wire.produce(topic, batch([b"b"], producer=(producer_id, 1, 0))).error_code == 0
    assert wire.produce(topic, batch([b"x"], producer=(producer_id, 0, 1))).error_code == OLD_EPOCH


def test_sequence_numbers_wrap_around(wire: Wire, topic: str) -> None:
    producer_id = wire.init_producer_id().producer_id
    assert wire.produce(topic, batch([b"a", b"b"], producer=(producer_id, 0, 2**31 - 2))).error_code == 0
    assert wire.produce(topic, batch([b"c"], producer=(producer_id, 0, 0))).error_code == 0


def test_producer_ids_are_unique(wire: Wire) -> None:
    ids = [wire.init_producer_id().producer_id for _ in range(5)]
    assert len(set(ids)) == 5


def test_fetch_outside_the_log_is_out_of_range_and_at_its_end_is_empty(wire: Wire, topic: str) -> None:
    wire.produce(topic, batch([b"a"]))
    assert wire.fetch(topic, 2).error_code == OUT_OF_RANGE
    answer = wire.fetch(topic, 1, max_wait_ms=1)
    assert (answer.error_code, answer.records or b"") == (0, b"")


def test_fetch_waits_for_min_bytes_but_not_longer_than_max_wait(kafka: KafkaUnderTest, wire: Wire, topic: str) -> None:
    """Not longer: the shortest of three, on a machine that may be busy; and one that may wait far longer, and began before them, still waits."""
    wire.produce(topic, batch([b"a"]))
    with Wire(kafka.bootstrap_servers) as other:
        other.send(request := Wire.fetch_request(topic, 0, min_bytes=100_000, max_wait_ms=14_000), 11)
        waited_s = []
        for _ in range(3):
            started = time.monotonic()
            assert values_in(wire.fetch(topic, 0, min_bytes=100_000, max_wait_ms=300).records) == [b"a"]
            waited_s.append(time.monotonic() - started)
        assert 0.25 < min(waited_s) < 3
        assert not other.has_answer()
        wire.produce(topic, batch([b"x" * 100_000]))
        assert len(values_in(other.receive(request, 11).responses[0].partitions[0].records)) == 2


def test_a_waiting_fetch_is_woken_by_an_append(kafka: KafkaUnderTest, wire: Wire, topic: str) -> None:
    with Wire(kafka.bootstrap_servers) as other, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.fetch, topic, 0, max_wait_ms=15_000)
        started = time.monotonic()
        while not waiting.running():
            pass
        wire.produce(topic, batch([b"wake up"]))
        assert values_in(waiting.result(20).records) == [b"wake up"]
        assert time.monotonic() - started < 10


def test_a_batch_larger_than_every_limit_still_comes_alone(wire: Wire, topic: str) -> None:
    for _ in range(3):
        wire.produce(topic, batch([b"x" * 5_000]))
    answer = wire.fetch(topic, 1, max_bytes=100, partition_max_bytes=100)
    assert offsets_in(answer.records) == [1]


def test_partition_max_bytes_limits_what_comes(wire: Wire, topic: str) -> None:
    for _ in range(10):
        wire.produce(topic, batch([b"x" * 1_000]))
    answer = wire.fetch(topic, 0, partition_max_bytes=3_500)
    assert offsets_in(answer.records[: len(answer.records) // 1_069 * 1_069 + 3]) == [0, 1, 2]
    assert len(answer.records) <= 3_500


def test_a_fetch_session_that_nobody_knows_is_refused(wire: Wire, topic: str) -> None:
    request = wire.fetch_request(topic, 0)
    request.session_id, request.session_epoch = 123_456, 5
    assert wire.call(request, 11).error_code == 70


def test_a_fetch_by_the_id_of_a_deleted_topic_says_so(wire: Wire, topic_prefix: str) -> None:
    old_id = wire.create_topic(topic_prefix)
    request = wire.fetch_request(topic_prefix, 0)
    request.topics[0].topic_id = old_id
    assert wire.call(request, 13).responses[0].partitions[0].error_code == 0
    wire.delete_topic(topic_prefix)
    new_id = wire.create_topic(topic_prefix)
    assert new_id != old_id
    assert wire.call(request, 13).responses[0].partitions[0].error_code == 100


def test_offsets_by_time_are_exact_within_batches(wire: Wire, topic: str) -> None:
    now = int(time.time() * 1000)
    times = [now - 5_000, now - 4_000, now - 4_000, now - 3_000]
    wire.produce(topic, batch([b"a", b"b"], timestamps=times[:2], codec=1))
    wire.produce(topic, batch([b"c", b"d"], timestamps=times[2:]))
    asked = [now - 9_000, now - 5_000, now - 4_500, now - 4_000, now - 3_999, now - 3_000]
    answers = [wire.list_offset(topic, timestamp) for timestamp in asked]
    assert [answer.offset for answer in answers] == [0, 0, 1, 1, 3, 3]
    assert [answer.timestamp for answer in answers] == [times[0], times[0], times[1], times[1], times[3], times[3]]
    assert (wire.list_offset(topic, now).offset, wire.list_offset(topic, now).timestamp) == (-1, -1)


def test_special_offsets_name_both_ends_and_the_newest_record(wire: Wire, topic: str) -> None:
    now = int(time.time() * 1000)
    empty = [wire.list_offset(topic, special) for special in (-1, -2, -3)]
    assert [(answer.offset, answer.timestamp) for answer in empty] == [(0, -1), (0, -1), (-1, -1)]
    wire.produce(topic, batch([b"a", b"b", b"c"], timestamps=[now - 9, now, now - 5]))
    answers = [wire.list_offset(topic, special) for special in (-1, -2, -3)]
    assert [(answer.offset, answer.timestamp) for answer in answers] == [(3, -1), (0, -1), (1, now)]


def test_a_leader_epoch_from_the_future_is_unknown(wire: Wire, topic: str) -> None:
    request = wire.fetch_request(topic, 0)
    request.topics[0].partitions[0].current_leader_epoch = wire.leader_epoch(topic) + 1
    assert wire.call(request, 11).responses[0].partitions[0].error_code == 75


def test_answers_come_in_the_order_of_the_requests(wire: Wire, topic: str) -> None:
    slow, quick = wire.fetch_request(topic, 0, max_wait_ms=300), wire.fetch_request("no-such-topic-here", 0)
    sent = [wire.send(slow, 11), wire.send(quick, 11)]
    received = [struct.unpack(">i", wire.receive_frame()[:4])[0] for _ in sent]
    assert received == sent
