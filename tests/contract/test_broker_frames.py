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

from ops.broker.codes import ErrorCode
from ops.broker.dispatch import Dispatcher, MalformedFrame, Peer
from ops.broker.fetch_response import FetchedPartition, FetchedTopic, encode_fetch
from ops.broker.versions import REQUEST_CLASSES, SUPPORTED, ApiKey
from schemas.settings import BrokerSettings, Settings
from tests.broker_process import BrokerProcess, start_broker
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


@pytest.mark.parametrize("endless", [b"\xff", b"\x80"])
def test_no_varint_of_a_request_is_read_beyond_five_bytes(endless: bytes) -> None:
    """One number of a megabyte takes the only thread minutes: in the header, and wherever a body has its first one."""
    with pytest.raises(MalformedFrame, match="a varint is longer than 5 bytes"):
        Dispatcher({}).dispatch(raw_request(3, 9, body=endless * 50)[4:], Peer("127.0.0.1", "127.0.0.1", 9092))
    for key, (_, newest) in SUPPORTED.items():
        if REQUEST_CLASSES[key].flexible_version_q(newest):
            errors = [error for skipped in range(40) if (error := failure(key, newest, bytes(skipped) + endless * 400))]
            assert any("a varint is longer than 5 bytes" in error or "Invalid value" in error for error in errors), ApiKey(key).name


def failure(api_key: int, version: int, body: bytes) -> str:
    try:
        REQUEST_CLASSES[api_key].decode(memoryview(body), version=version)
    except Exception as error:
        return str(error)
    return ""


def test_a_struct_with_more_than_a_kibibyte_of_tagged_fields_does_not_decode() -> None:
    """Each struct would copy the whole rest of the request."""
    tags = [b"\x01\x40" + bytes([size & 0x7F | 0x80, size >> 7]) + bytes(size) for size in (1_000, 1_100)]
    assert [bool(failure(ApiKey.DESCRIBE_CLUSTER, 2, bytes(3) + tag)) for tag in tags] == [False, True]


def test_a_list_of_millions_of_small_items_is_refused_before_it_is_decoded(line: Wire, broker: BrokerProcess) -> None:
    with Wire(broker.bootstrap_servers) as other:
        other.socket.sendall(raw_request(3, 0, body=(2**20).to_bytes(4, "big") + bytes(2 * 2**20)))
        with pytest.raises(ConnectionError):
            other.receive_frame()
    with pytest.raises(MalformedFrame, match="the limit is 1048576"):
        Dispatcher({}).dispatch(raw_request(3, 0, body=bytes(2 * 2**20))[4:], Peer("127.0.0.1", "127.0.0.1", 9092))
    assert line.metadata("still-there").error_code


def test_a_header_with_thousands_of_tagged_fields_is_refused() -> None:
    with pytest.raises(MalformedFrame, match="tagged fields"):
        Dispatcher({}).dispatch(raw_request(3, 9, body=b"\xff\x7f" + bytes(2**15))[4:], Peer("127.0.0.1", "127.0.0.1", 9092))


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
    with start_broker(Settings(broker=limits), listen="127.0.0.1:0", root=tmp_path_factory.mktemp("small")) as process:
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
