"""A client that does nothing by itself: one socket, requests as kafka-python's classes encode them, answers as they decode them."""

import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from kafka.protocol.admin import CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeGroupsRequest
from kafka.protocol.api_header import ResponseClassRegistry
from kafka.protocol.consumer import FetchRequest, ListOffsetsRequest, OffsetForLeaderEpochRequest
from kafka.protocol.metadata import ApiVersionsRequest, FindCoordinatorRequest, MetadataRequest
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest
from kafka.record.memory_records import MemoryRecordsBuilder

LENGTH = struct.Struct(">i")


def batch(
    values: Sequence[bytes], *, producer: tuple[int, int, int] = (-1, -1, -1), timestamps: Sequence[int] | None = None, codec: int = 0, magic: int = 2
) -> bytes:
    """One record batch. ``producer`` is id, epoch and base sequence; timestamps are milliseconds."""
    producer_id, epoch, sequence = producer
    builder = MemoryRecordsBuilder(magic, codec, 64 * 2**20, producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)
    for index, value in enumerate(values):
        builder.append(timestamps[index] if timestamps else int(time.time() * 1000), None, value)
    builder.close()
    return bytes(builder.buffer())


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Ask until it is true; fail saying ``what`` if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Wire:
    """One connection. ``call`` is one request and its answer; ``send`` and ``receive`` are the halves of it."""

    def __init__(self, bootstrap_servers: str, timeout_s: float = 20.0) -> None:
        host, _, port = bootstrap_servers.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self._correlation_id = 0
        self._newest: dict[int, int] | None = None

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, request: Any, version: int) -> int:
        """Send a request; returns its correlation id."""
        self._correlation_id += 1
        request.API_VERSION = version
        request.with_header(correlation_id=self._correlation_id, client_id="wire")
        self.socket.sendall(bytes(request.encode(version=version, header=True, framed=True)))
        return self._correlation_id

    def receive_frame(self) -> bytes:
        """The next answer's bytes, without their length. Raises ConnectionError at the end of the stream."""
        return self._exactly(LENGTH.unpack(self._exactly(LENGTH.size))[0])

    def has_answer(self) -> bool:
        """Whether bytes have come that nobody has received."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def _exactly(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes:
            chunk = self.socket.recv(size_bytes - len(data))
            if not chunk:
                raise ConnectionError("the broker closed the connection")
            data += chunk
        return data

    def receive(self, request: Any, version: int) -> Any:
        """The next answer, decoded as the answer to ``request``."""
        response = ResponseClassRegistry._response_class_registry[request.API_KEY]
        frame = self.receive_frame()
        assert LENGTH.unpack(frame[:4])[0] <= self._correlation_id
        return response.decode(frame, version=version, header=True)

    def call(self, request: Any, version: int) -> Any:
        """One request and its answer."""
        self.send(request, version)
        return self.receive(request, version)

    def newest(self, request_class: Any) -> int:
        """The newest version of a request that both the broker and kafka-python know."""
        if self._newest is None:
            answer = self.call(ApiVersionsRequest(client_software_name="wire", client_software_version="1"), 3)
            self._newest = {key.api_key: key.max_version for key in answer.api_keys}
        return int(min(self._newest[request_class.API_KEY], request_class.max_version))

    def create_topic(self, name: str, num_partitions: int = 1, **configs: str) -> Any:
        """Create a topic (underscores in config names stand for dots) and return its id."""
        topic = CreateTopicsRequest.CreatableTopic
        entries = [topic.CreatableTopicConfig(name=key.replace("_", "."), value=value) for key, value in configs.items()]
        wanted = topic(name=name, num_partitions=num_partitions, replication_factor=1, assignments=[], configs=entries)
        created = self.call(CreateTopicsRequest(topics=[wanted], timeout_ms=10_000, validate_only=False), 7).topics[0]
        assert created.error_code == 0, created.error_message
        self._wait_for_leader(name, num_partitions)
        return created.topic_id

    def _wait_for_leader(self, name: str, num_partitions: int) -> None:
        """A topic is created before its partitions are led: wait until each answers."""

        def is_led() -> bool:
            return not self.metadata(name).error_code and not any(
                self.list_offset(name, -1, partition=index).error_code for index in range(num_partitions)
            )

        eventually(is_led, f"topic {name} got no leaders")

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until it is gone."""
        request = DeleteTopicsRequest(topics=[DeleteTopicsRequest.DeleteTopicState(name=name, topic_id=None)], timeout_ms=10_000)
        assert self.call(request, 6).responses[0].error_code == 0
        eventually(lambda: bool(self.metadata(name).error_code == 3), f"topic {name} is still there")

    def delete_records(self, topic: str, offset: int) -> Any:
        """Move the log start of partition 0; returns the partition's answer."""
        topic_class = DeleteRecordsRequest.DeleteRecordsTopic
        part = topic_class.DeleteRecordsPartition(partition_index=0, offset=offset)
        request = DeleteRecordsRequest(topics=[topic_class(name=topic, partitions=[part])], timeout_ms=10_000)
        return self.call(request, 2).topics[0].partitions[0]

    def metadata(self, name: str, *, create: bool = False) -> Any:
        """Metadata of one topic."""
        topics = [MetadataRequest.MetadataRequestTopic(name=name, topic_id=None)]
        return self.call(MetadataRequest(topics=topics, allow_auto_topic_creation=create), 12).topics[0]

    def produce(self, topic: str, records: bytes | None, *, partition: int = 0, acks: int = -1, version: int = 9) -> Any:
        """Produce bytes as they are to one partition; returns the partition's answer, None for acks=0."""
        part = ProduceRequest.TopicProduceData.PartitionProduceData(index=partition, records=records)
        topics = [ProduceRequest.TopicProduceData(name=topic, partition_data=[part])]
        request = ProduceRequest(transactional_id=None, acks=acks, timeout_ms=10_000, topic_data=topics)
        if acks == 0:
            self.send(request, version)
            return None
        return self.call(request, version).responses[0].partition_responses[0]

    @staticmethod
    def fetch_request(
        topic: str, offset: int, *, max_wait_ms: int = 500, min_bytes: int = 1, max_bytes: int = 2**20, partition_max_bytes: int = 2**20
    ) -> Any:
        """A fetch of partition 0."""
        part = FetchRequest.FetchTopic.FetchPartition(
            partition=0,
            current_leader_epoch=-1,
            fetch_offset=offset,
            last_fetched_epoch=-1,
            log_start_offset=-1,
            partition_max_bytes=partition_max_bytes,
        )
        topics = [FetchRequest.FetchTopic(topic=topic, partitions=[part])]
        return FetchRequest(
            max_wait_ms=max_wait_ms,
            min_bytes=min_bytes,
            max_bytes=max_bytes,
            isolation_level=0,
            session_id=0,
            session_epoch=-1,
            topics=topics,
            forgotten_topics_data=[],
            rack_id="",
        )

    def fetch(self, topic: str, offset: int, **limits: int) -> Any:
        """Fetch from partition 0; returns the partition's answer."""
        return self.call(self.fetch_request(topic, offset, **limits), 11).responses[0].partitions[0]

    def list_offset(self, topic: str, timestamp: int, *, version: int = 7, partition: int = 0) -> Any:
        """ListOffsets of one partition."""
        topic_class = ListOffsetsRequest.ListOffsetsTopic
        part = topic_class.ListOffsetsPartition(partition_index=partition, current_leader_epoch=-1, timestamp=timestamp)
        request = ListOffsetsRequest(replica_id=-1, isolation_level=0, topics=[topic_class(name=topic, partitions=[part])])
        return self.call(request, version).topics[0].partitions[0]

    def leader_epoch(self, topic: str) -> int:
        """The epoch under which partition 0 is led."""
        return int(self.metadata(topic).partitions[0].leader_epoch)

    def epoch_end(self, topic: str, epoch: int, *, current: int = -1) -> tuple[int, int, int]:
        """Error code, epoch and end of an epoch of partition 0. ``current``: the epoch under which the client believes it to be led."""
        topic_class = OffsetForLeaderEpochRequest.OffsetForLeaderTopic
        part = topic_class.OffsetForLeaderPartition(partition=0, current_leader_epoch=current, leader_epoch=epoch)
        request = OffsetForLeaderEpochRequest(replica_id=-1, topics=[topic_class(topic=topic, partitions=[part])])
        found = self.call(request, 4).topics[0].partitions[0]
        return found.error_code, found.leader_epoch, found.end_offset

    def init_producer_id(self, transactional_id: str | None = None) -> Any:
        """A producer id."""
        request = InitProducerIdRequest(transactional_id=transactional_id, transaction_timeout_ms=60_000, producer_id=-1, producer_epoch=-1)
        return self.call(request, 4)

    def wait_until_warm(self) -> None:
        """A broker that has just started may not have its coordinators yet: wait for producer ids and for groups."""
        eventually(lambda: not self.init_producer_id().error_code, "no producer ids")
        eventually(lambda: not self.call(FindCoordinatorRequest(key="warm", key_type=0), 3).error_code, "no group coordinator")
        describe = DescribeGroupsRequest(groups=["warm"], include_authorized_operations=False)
        eventually(lambda: not self.call(describe, 4).groups[0].error_code, "no groups")
