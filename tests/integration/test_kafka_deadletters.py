"""Dead letters: the original, the reason, and a name that is the same each time."""

from typing import Any

import pyarrow as pa
import pytest
from kafka import TopicPartition

from pipelines.kafka.clients import open_consumer
from pipelines.kafka.deadletters import original, publish_dead_letters
from pipelines.kafka.topics import ensure_topics, topic_names
from schemas import arrow
from schemas.errors import BrokerUnavailable
from schemas.settings import Settings
from tests.integration.conftest import Stream, stream_settings

ROW = {"topic": "t", "partition": 1, "offset": 42, "outcome": "dead", "reason": "not_utf8", "error": "the value is not UTF-8: byte 0 is 0xff"}


def dead(*changes: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([ROW | change for change in changes], schema=arrow.prepared(300))


def pairs(*headers: tuple[str, bytes | None]) -> list[dict[str, Any]]:
    return [{"key": name, "value": value} for name, value in headers]


def letters(settings: Settings, expected: int) -> list[Any]:
    name = topic_names(settings).deadletter
    with open_consumer(settings) as consumer:
        keys = [TopicPartition(name, partition) for partition in consumer.partitions_for_topic(name)]
        consumer.assign(keys)
        consumer.seek_to_beginning(*keys)
        found: list[Any] = []
        while len(found) < expected:
            batches = consumer.poll(timeout_ms=10_000)
            assert batches, f"{len(found)} of {expected} dead letters came"
            found += [record for batch in batches.values() for record in batch]
    return sorted(found, key=lambda record: int(dict(record.headers)["headrace_offset"]))


def test_a_dead_letter_is_the_original_with_its_reason_and_place(stream: Stream) -> None:
    ensure_topics(stream.settings)
    headers = pairs(("ce_id", b"\xff"), ("note", b"a"), ("note", b"b"), ("nothing", None))
    rows = dead({"key": b"\x00k", "value": b"\xff\x00", "headers": headers}, {"offset": 43, "key": None, "value": None, "headers": []})
    assert publish_dead_letters(stream.settings, rows) == 2
    first, second = letters(stream.settings, 2)
    assert (first.key, first.value) == (b"t/1/42", b"\xff\x00")
    assert first.headers[:4] == [("ce_id", b"\xff"), ("note", b"a"), ("note", b"b"), ("nothing", b"")]
    assert dict(first.headers[4:]) == {
        "headrace_error": b"not_utf8: the value is not UTF-8: byte 0 is 0xff",
        "headrace_rule": b"not_utf8",
        "headrace_stage": b"decode",
        "headrace_topic": b"t",
        "headrace_partition": b"1",
        "headrace_offset": b"42",
        "headrace_key": b"\x00k",
    }
    assert (second.key, second.value, dict(second.headers)["ce_id"]) == (b"t/1/43", None, b"t/1/43")
    assert original(first.value, first.headers) == (b"\x00k", b"\xff\x00", first.headers[:4])
    assert original(second.value, second.headers) == (None, None, [])


def test_publishing_twice_gives_the_same_letter_twice(stream: Stream) -> None:
    ensure_topics(stream.settings)
    for _ in range(2):
        publish_dead_letters(stream.settings, dead({"value": b"x"}))
    first, second = letters(stream.settings, 2)
    assert (first.key, first.value, first.headers) == (second.key, second.value, second.headers)


def test_a_letter_that_died_again_keeps_its_first_death(stream: Stream) -> None:
    ensure_topics(stream.settings)
    publish_dead_letters(stream.settings, dead({"value": b"x", "headers": pairs(("headrace_error", b"first"))}))
    (letter,) = letters(stream.settings, 1)
    assert original(letter.value, letter.headers) == (None, b"x", [("headrace_error", b"first")])


def test_many_and_large_letters_all_arrive(stream: Stream) -> None:
    ensure_topics(stream.settings)
    small = [{"offset": position, "value": b"x" * 1000} for position in range(1000)]
    large = [{"offset": 1000 + position, "value": b"y" * 9_000_000} for position in range(4)]
    assert publish_dead_letters(stream.settings, dead(*small, *large)) == 1004
    assert [int(dict(letter.headers)["headrace_offset"]) for letter in letters(stream.settings, 1004)] == list(range(1004))


def test_a_value_that_the_topic_does_not_take_is_left_out_and_blocks_nothing(stream: Stream) -> None:
    name = topic_names(stream.settings).deadletter
    stream.admin.create_topics({name: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    rows = dead(
        {"value": b"x" * 3_000_000}, {"offset": 43, "value": b"small"}, {"offset": 44, "value": b"v", "headers": pairs(("h", b"x" * 2_000_000))}
    )
    assert publish_dead_letters(stream.settings, rows) == 3
    first, second, third = letters(stream.settings, 3)
    assert (first.value, dict(first.headers)["headrace_value_omitted"]) == (b"", b"3000000")
    assert second.value == b"small"
    assert dict(third.headers)["headrace_value_omitted"] == b"1"


def test_no_letters_need_no_broker() -> None:
    assert publish_dead_letters(Settings(), dead()) == 0


def test_a_broker_that_does_not_answer_is_an_error_so_that_nothing_is_committed() -> None:
    settings = stream_settings("127.0.0.1:1", "x")
    hasty = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"request_timeout_s": 1.0})})
    with pytest.raises(BrokerUnavailable):
        publish_dead_letters(hasty, dead({"value": b"x"}))


def test_a_missing_dead_letter_topic_is_an_error_and_is_not_created(stream: Stream) -> None:
    hasty = stream.settings.model_copy(update={"kafka": stream.settings.kafka.model_copy(update={"request_timeout_s": 2.0})})
    with pytest.raises(BrokerUnavailable, match="deadletter"):
        publish_dead_letters(hasty, dead({"value": b"x"}))
    assert topic_names(stream.settings).deadletter not in {entry["name"] for entry in stream.admin.describe_topics()}
