"""What the embedded broker does with requests that it does not know, and with bytes that are no requests at all."""

import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.protocol.admin import CreateAclsRequest, DescribeTransactionsRequest
from kafka.protocol.consumer import FetchRequest, FetchResponse
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, FindCoordinatorRequest
from kafka.protocol.producer import AddPartitionsToTxnRequest, EndTxnRequest

from ops.broker.app import BrokerProcess, start_broker
from ops.broker.codes import ErrorCode
from ops.broker.fetch_response import FetchedPartition, FetchedTopic, encode_fetch
from ops.broker.versions import SUPPORTED, ApiKey
from schemas.settings import BrokerSettings, Settings
from tests.contract.conftest import KafkaUnderTest
from tests.contract.wire import Wire, batch, eventually

UNSUPPORTED_VERSION, NO_TRANSACTIONS = 35, 53


@pytest.fixture
def line(broker: BrokerProcess) -> Iterator[Wire]:
    """A bare connection to the embedded broker."""
    with Wire(broker.bootstrap_servers) as connection:
        yield connection


def raw_request(api_key: int, version: int, correlation_id: int = 7, body: bytes = b"") -> bytes:
    frame = struct.pack(">hhih", api_key, version, correlation_id, 4) + b"test" + body
    return struct.pack(">i", len(frame)) + frame


def test_an_unknown_version_of_api_versions_is_answered_in_version_0(kafka: KafkaUnderTest) -> None:
    with Wire(kafka.bootstrap_servers) as connection:
        connection.socket.sendall(raw_request(18, 99, body=b"\x00"))
        frame = connection.receive_frame()
        assert struct.unpack(">ih", frame[:6]) == (7, UNSUPPORTED_VERSION)
        answer = ApiVersionsResponse.decode(frame[4:], version=0)
        assert any(key.api_key == 18 for key in answer.api_keys)


def test_every_advertised_version_is_one_that_can_be_decoded(line: Wire) -> None:
    answer = line.call(ApiVersionsRequest(client_software_name="wire", client_software_version="1"), 4)
    assert {key.api_key: (key.min_version, key.max_version) for key in answer.api_keys} == {
        int(key): tuple(low_high) for key, low_high in SUPPORTED.items()
    }


@pytest.mark.parametrize("api_key", [999, 6, 71])
def test_an_unknown_request_gets_unsupported_version_and_keeps_its_connection(line: Wire, api_key: int) -> None:
    line.socket.sendall(raw_request(api_key, 0))
    assert struct.unpack(">ih", line.receive_frame()) == (7, UNSUPPORTED_VERSION)
    assert line.metadata("still-there").error_code


@pytest.mark.parametrize(("api_key", "version"), [(1, 3), (1, 18), (0, 2), (2, 11), (8, 10), (3, 99)])
def test_an_unsupported_version_gets_unsupported_version_and_keeps_its_connection(line: Wire, api_key: int, version: int) -> None:
    line.socket.sendall(raw_request(api_key, version, body=bytes(80)))
    assert struct.unpack(">i", line.receive_frame()[:4]) == (7,)
    assert line.metadata("still-there").error_code


def test_requests_that_kafka_has_and_this_broker_has_not_are_refused_item_by_item(line: Wire) -> None:
    acl = CreateAclsRequest.AclCreation(
        resource_type=2, resource_name="t", resource_pattern_type=3, principal="User:a", host="*", operation=2, permission_type=3
    )
    assert [result.error_code for result in line.call(CreateAclsRequest(creations=[acl, acl]), 3).results] == [UNSUPPORTED_VERSION] * 2
    states = line.call(DescribeTransactionsRequest(transactional_ids=["a"]), 0).transaction_states
    assert [(state.transactional_id, state.error_code) for state in states] == [("a", UNSUPPORTED_VERSION)]
    assert line.call(EndTxnRequest(transactional_id="a", producer_id=1, producer_epoch=0, committed=True), 3).error_code == UNSUPPORTED_VERSION
    topic = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic(name="t", partitions=[0, 1])
    request = AddPartitionsToTxnRequest(
        v3_and_below_transactional_id="a", v3_and_below_producer_id=1, v3_and_below_producer_epoch=0, v3_and_below_topics=[topic]
    )
    answer = line.call(request, 3)
    assert [part.partition_error_code for part in answer.results_by_topic_v3_and_below[0].results_by_partition] == [UNSUPPORTED_VERSION] * 2


def test_transactions_are_refused_at_every_door(line: Wire, topic_prefix: str) -> None:
    line.create_topic(topic_prefix)
    assert line.init_producer_id("my-transactions").error_code == NO_TRANSACTIONS
    assert line.call(FindCoordinatorRequest(key="my-transactions", key_type=1), 3).error_code == NO_TRANSACTIONS
    transactional = bytearray(batch([b"x"], producer=(1, 0, 0)))
    transactional[22] |= 0x10
    assert line.produce(topic_prefix, with_crc(transactional)).error_code == NO_TRANSACTIONS


def with_crc(sent: bytearray) -> bytes:
    from crc32c import crc32c

    struct.pack_into(">I", sent, 17, crc32c(bytes(sent[21:])))
    return bytes(sent)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 64,
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x05\x00\x12\x00\x00\x00",
        raw_request(3, 9, body=b"\xff" * 9),
    ],
    ids=["http", "negative length", "empty frame", "short frame", "body that does not decode"],
)
def test_garbage_ends_its_own_connection_and_nothing_else(broker: BrokerProcess, line: Wire, garbage: bytes) -> None:
    with Wire(broker.bootstrap_servers) as other:
        other.socket.sendall(garbage)
        with pytest.raises(ConnectionError):
            other.receive_frame()
    assert line.metadata("still-there").error_code


def test_a_frame_may_arrive_byte_by_byte_and_several_at_once(line: Wire) -> None:
    frame = raw_request(18, 0)
    for index in range(len(frame)):
        line.socket.sendall(frame[index : index + 1])
    assert len(line.receive_frame()) > 100
    line.socket.sendall(frame * 50)
    assert {len(line.receive_frame()) for _ in range(50)} == {4 + 2 + 4 + 6 * len(SUPPORTED)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker with low limits."""
    limits = BrokerSettings(max_connections=3, max_request_bytes=10_000, auto_create_topics=False)
    with start_broker(Settings(broker=limits), listen="127.0.0.1:0", data_dir=tmp_path_factory.mktemp("small")) as process:
        yield process


def test_an_oversized_frame_ends_its_connection_before_it_is_read(small: BrokerProcess) -> None:
    with Wire(small.bootstrap_servers) as connection:
        connection.socket.sendall(struct.pack(">i", 10_001))
        with pytest.raises(ConnectionError):
            connection.receive_frame()


def test_connections_beyond_the_limit_are_closed_and_a_freed_place_is_taken_again(small: BrokerProcess) -> None:
    def answers() -> bool:
        with Wire(small.bootstrap_servers) as connection:
            try:
                return bool(connection.metadata("x").error_code)
            except ConnectionError:
                return False

    eventually(answers, "no place at first")
    kept = [Wire(small.bootstrap_servers) for _ in range(3)]
    for connection in kept:
        connection.metadata("x")
    assert not answers()
    for connection in kept:
        connection.socket.close()
    eventually(answers, "the places stay taken")


def test_topics_are_not_created_on_demand_when_the_setting_says_so(small: BrokerProcess) -> None:
    with Wire(small.bootstrap_servers) as connection:
        assert connection.metadata("never-created", create=True).error_code == 3


def test_a_slow_reader_does_not_make_the_broker_hoard(line: Wire, broker: BrokerProcess, topic_prefix: str) -> None:
    line.create_topic(topic_prefix)
    for _ in range(8):
        line.produce(topic_prefix, batch([b"x" * 900_000]))
    with Wire(broker.bootstrap_servers) as slow:
        request = slow.fetch_request(topic_prefix, 0, max_bytes=10 * 2**20, partition_max_bytes=10 * 2**20)
        sender = threading.Thread(target=lambda: [slow.send(request, 11) for _ in range(40)])
        sender.start()
        line.metadata(topic_prefix)
        resident_mib = int(Path(f"/proc/{broker.pid}/statm").read_text().split()[1]) * 4096 / 2**20
        assert resident_mib < 250
        assert [len(slow.receive_frame()) > 7_000_000 for _ in range(40)] == [True] * 40
        sender.join()


@pytest.mark.parametrize("version", range(4, 18))
def test_our_fetch_encoder_writes_what_kafka_python_reads(version: int, topic_prefix: str) -> None:
    import uuid

    topic_id = uuid.uuid4()
    partitions = [
        FetchedPartition(0, ErrorCode.NONE, 12, 3, b"r" * 200),
        FetchedPartition(5, ErrorCode.OFFSET_OUT_OF_RANGE, -1, -1, b""),
    ]
    ours = b"".join(encode_fetch(version, ErrorCode.NONE, [FetchedTopic("水-t", topic_id, partitions), FetchedTopic("u", topic_id, [])]))
    assert ours == bytes(theirs(topic_id, partitions).encode(version=version))
    assert FetchRequest.API_KEY == ApiKey.FETCH


def theirs(topic_id: Any, partitions: list[FetchedPartition]) -> Any:
    topic_class = FetchResponse.FetchableTopicResponse
    encoded = [
        topic_class.PartitionData(
            partition_index=part.partition,
            error_code=int(part.code),
            high_watermark=part.high_watermark,
            last_stable_offset=part.high_watermark,
            log_start_offset=part.start_offset,
            aborted_transactions=[],
            preferred_read_replica=-1,
            records=part.records,
        )
        for part in partitions
    ]
    topics = [topic_class(topic=name, topic_id=topic_id, partitions=parts) for name, parts in (("水-t", encoded), ("u", []))]
    return FetchResponse(throttle_time_ms=0, error_code=0, session_id=0, responses=topics)
