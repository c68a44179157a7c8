"""Whole clients against each broker of the matrix: kafka-python and confluent-kafka (librdkafka) see what Apache Kafka shows them."""

import threading
import time
from contextlib import ExitStack, closing

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from tests.contract.clients import CLIENTS, Client, Reader, Record
from tests.contract.conftest import KafkaUnderTest
from tests.contract.wire import Wire, eventually


@pytest.fixture(params=sorted(CLIENTS))
def client(request: pytest.FixtureRequest, kafka: KafkaUnderTest) -> Client:
    """Each client in turn."""
    return CLIENTS[request.param](kafka.bootstrap_servers)


@pytest.fixture
def topic(wire: Wire, topic_prefix: str) -> str:
    """A topic of two partitions."""
    wire.create_topic(topic_prefix, num_partitions=2)
    return topic_prefix


def read(reader: Reader, count: int) -> list[Record]:
    """Exactly so many records, sorted by partition and offset."""
    found: list[Record] = []

    def is_there() -> bool:
        found.extend(reader.poll())
        return len(found) >= count

    eventually(is_there, f"{count} records do not come", timeout_s=90)
    assert len(found) == count
    return sorted(found, key=lambda record: (record.partition, record.offset))


def test_records_come_back_as_they_were_sent_with_every_codec(client: Client, topic: str) -> None:
    now = int(time.time() * 1000)
    sent = [
        Record(b"plain " * 50, b"key", (("h", b"1"), ("h", b"2")), now - 5),
        Record("水渠把水引向磨坊".encode(), None, (), now - 4),
        Record(None, b"tombstone", (), now - 3),
        Record(b"", b"", (("empty", b""),), now - 2),
    ]
    codecs = ("none", "gzip", "snappy", "lz4", "zstd")
    assert [client.produce(topic, sent, codec=codec)[0] for codec in codecs] == [0, 4, 8, 12, 16]
    with client.reader(topic, f"{topic}-group") as reader:
        assert read(reader, 20) == sent * 5


def test_a_group_goes_on_where_it_committed(client: Client, topic: str) -> None:
    client.produce(topic, [Record(b"%d" % index, partition=index % 2) for index in range(10)])
    with client.reader(topic, f"{topic}-group") as reader:
        read(reader, 10)
        reader.commit()
    client.produce(topic, [Record(b"new", partition=1)])
    with client.reader(topic, f"{topic}-group") as reader:
        assert [record.value for record in read(reader, 1)] == [b"new"]


class Polling:
    """A reader that polls in a thread of its own, as members of a group do."""

    def __init__(self, client: Client, topic: str, group: str) -> None:
        self.partitions: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(client, topic, group))
        self._thread.start()

    def _run(self, client: Client, topic: str, group: str) -> None:
        with client.reader(topic, group) as reader:
            while not self._stop.is_set():
                reader.poll()
                self.partitions = reader.partitions()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def test_two_readers_share_the_partitions_and_one_takes_over_from_the_other(client: Client, topic: str) -> None:
    with ExitStack() as stack:
        alice, bob = (stack.enter_context(closing(Polling(client, topic, f"{topic}-group"))) for _ in range(2))
        eventually(lambda: {*alice.partitions, *bob.partitions} == {0, 1} and len(alice.partitions) == len(bob.partitions) == 1, "nothing is shared")
        bob.close()
        eventually(lambda: alice.partitions == {0, 1}, "alice does not take over")


def test_offsets_are_found_by_time(client: Client, topic: str) -> None:
    now = int(time.time() * 1000)
    client.produce(topic, [Record(b"x", timestamp=now - 1_000 + index) for index in range(20)], codec="gzip")
    assert [client.offset_for_time(topic, now - 1_000 + index) for index in (-5, 0, 7, 19)] == [0, 0, 7, 19]
    assert client.offset_for_time(topic, now + 60_000) in (None, 20)


def test_an_unknown_topic_is_created_by_its_first_record(client: Client, topic_prefix: str) -> None:
    assert client.produce(topic_prefix, [Record(b"first")]) == [0]


def test_transactions_work_or_are_refused_at_once(kafka: KafkaUnderTest, client: Client) -> None:
    if kafka.has_transactions:
        client.transactional()
    else:
        with pytest.raises(Exception, match=r"(?i)transactional.?id.*authoriz"):
            client.transactional()


def test_many_records_of_every_size_arrive_once_and_in_order(client: Client, topic: str) -> None:
    sizes = [(index * 7919) % 3_000 for index in range(3_000)] + [700_000]
    client.produce(topic, [Record(b"%06d" % index + b"x" * size, partition=index % 2) for index, size in enumerate(sizes)])
    with client.reader(topic, f"{topic}-group") as reader:
        found = read(reader, len(sizes))
    assert [int(record.value[:6]) for record in found if record.value] == [*range(0, len(sizes), 2), *range(1, len(sizes), 2)]
    assert all(record.value and len(record.value) == 6 + sizes[int(record.value[:6])] for record in found)


def test_admin_client_sees_topics_configs_and_groups(kafka: KafkaUnderTest, topic_prefix: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    admin.create_topics({topic_prefix: {"num_partitions": 3, "replication_factor": 1, "configs": {"retention.ms": "1234567"}}})
    eventually(lambda: topic_prefix in admin.list_topics(), "the topic is not listed")
    described = admin.describe_topics([topic_prefix])[0]
    assert len(described["partitions"]) == 3
    assert described["topic_id"]
    admin.delete_topics([topic_prefix])
    eventually(lambda: topic_prefix not in admin.list_topics(), "the topic is still listed")
    admin.close()


def test_reading_below_the_log_start_raises_without_a_reset_policy(kafka: KafkaUnderTest, wire: Wire, topic: str) -> None:
    CLIENTS["kafka-python"](kafka.bootstrap_servers).produce(topic, [Record(b"x") for _ in range(10)])
    wire.delete_records(topic, 5)
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="none", enable_auto_commit=False)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    assert (consumer.beginning_offsets([partition])[partition], consumer.end_offsets([partition])[partition]) == (5, 10)
    consumer.seek(partition, 3)

    def is_out_of_range() -> bool:
        try:
            assert not consumer.poll(timeout_ms=100)
        except OffsetOutOfRangeError:
            return True
        return False

    eventually(is_out_of_range, "records below the log start raise nothing")
    consumer.close()


def test_a_topic_recreated_under_a_reader_shows_in_its_id_only(kafka: KafkaUnderTest, wire: Wire, topic: str) -> None:
    """What FACTS say of Apache Kafka: the reader goes on at its old position in the new topic."""
    client = CLIENTS["kafka-python"](kafka.bootstrap_servers)
    client.produce(topic, [Record(b"old %d" % index) for index in range(10)])
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="none", enable_auto_commit=False, metadata_max_age_ms=500)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    found: list[bytes] = []

    def poll(count: int) -> bool:
        try:
            found.extend(record.value for record in consumer.poll(timeout_ms=100).get(partition, []))
        except KafkaError as error:
            assert not isinstance(error, OffsetOutOfRangeError), error
        return len(found) >= count

    eventually(lambda: poll(10), "the old records do not come")
    wire.delete_topic(topic)
    wire.create_topic(topic, num_partitions=2)
    client.produce(topic, [Record(b"new %d" % index) for index in range(30)])
    eventually(lambda: poll(30), "the new records do not come", timeout_s=90)
    assert found[10:] == [b"new %d" % index for index in range(10, 30)]
    consumer.close()
