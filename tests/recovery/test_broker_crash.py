"""SIGKILL of the embedded broker: nothing acknowledged is lost, nothing is doubled, groups and ids go on where they were."""

import os
import random
import threading
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, LogTruncationError

from pipelines.runtime.ports import free_ports
from schemas.errors import BrokerError
from schemas.settings import BrokerSettings, Settings
from tests.broker_process import start_broker
from tests.contract.test_broker_groups import GroupMember
from tests.contract.wire import Wire, batch, eventually

FENCED = 74
SMALL_SEGMENTS = Settings(broker=BrokerSettings(segment_bytes=200_000, num_partitions=2))


class Load:
    """An idempotent producer that sends numbered values until it is told to stop, and remembers which were acknowledged."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self.acknowledged: set[int] = set()
        self.sent = 0
        self._stop = threading.Event()
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap_servers, linger_ms=2, batch_size=4_000, retry_backoff_ms=20, reconnect_backoff_ms=20
        )
        self._topic = topic
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            number = self.sent
            self.sent += 1
            future = self._producer.send(self._topic, str(number).encode().ljust(200), partition=number % 2)
            future.add_callback(lambda _metadata, number=number: self.acknowledged.add(number))
            if number % 200 == 0:
                self._stop.wait(0.002)

    def wait_for(self, num_acknowledged: int) -> None:
        """Wait until so many have been acknowledged."""
        eventually(lambda: len(self.acknowledged) > num_acknowledged, "the producer is stuck", timeout_s=40)

    def finish(self) -> None:
        """Stop sending and wait until everything sent is settled."""
        self._stop.set()
        self._thread.join()
        self._producer.flush(60)
        self._producer.close()


def read_all(bootstrap_servers: str, topic: str) -> list[int]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="none", enable_auto_commit=False, check_crcs=True)
    partitions = [TopicPartition(topic, index) for index in range(2)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    found: list[int] = []
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for records in consumer.poll(timeout_ms=500).values():
            found += [int(record.value) for record in records]
    consumer.close()
    return found


def test_sigkill_under_load_loses_nothing_and_doubles_nothing(tmp_path: Path, topic_prefix: str) -> None:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    dice = random.Random(7)
    broker = start_broker(SMALL_SEGMENTS, listen=listen, root=tmp_path)
    load = Load(listen, topic_prefix)
    for _ in range(4):
        goal = len(load.acknowledged) + dice.randrange(300, 1_500)
        load.wait_for(goal)
        broker.kill()
        broker = start_broker(SMALL_SEGMENTS, listen=listen, root=tmp_path)
    load.finish()
    found = read_all(listen, topic_prefix)
    broker.stop()
    assert load.acknowledged <= set(found)
    assert len(found) == len(set(found))
    for partition in range(2):
        numbers = [number for number in found if number % 2 == partition]
        assert numbers == sorted(numbers)


def test_everything_durable_is_there_after_sigkill(tmp_path: Path, topic_prefix: str) -> None:
    broker = start_broker(Settings(), listen="127.0.0.1:0", root=tmp_path)
    with Wire(broker.bootstrap_servers) as wire:
        topic_id = wire.create_topic(topic_prefix, retention_ms="99999999")
        producer_id = wire.init_producer_id().producer_id
        sent = [batch([b"a", b"b"], producer=(producer_id, 0, 0)), batch([b"c"], producer=(producer_id, 0, 2))]
        assert [wire.produce(topic_prefix, one).base_offset for one in sent] == [0, 2]
        wire.delete_records(topic_prefix, 1)
    member = GroupMember(broker.bootstrap_servers, "readers")
    assert member.commit(topic_prefix, 2, metadata="水") == 0
    member.wire.socket.close()
    broker.kill()

    with start_broker(Settings(), listen="127.0.0.1:0", root=tmp_path) as broker, Wire(broker.bootstrap_servers) as wire:
        assert wire.metadata(topic_prefix).topic_id == topic_id
        assert (wire.list_offset(topic_prefix, -2).offset, wire.list_offset(topic_prefix, -1).offset) == (1, 3)
        assert [wire.produce(topic_prefix, one).base_offset for one in sent] == [0, 2]
        assert wire.produce(topic_prefix, batch([b"d"], producer=(producer_id, 0, 9))).error_code == 45
        assert wire.init_producer_id().producer_id > producer_id
        member = GroupMember(broker.bootstrap_servers, "readers")
        assert member.committed(topic_prefix) == [(topic_prefix, 0, 2, "水")]
        member.wire.socket.close()


def test_a_deleted_topic_stays_deleted_and_leaves_no_files(tmp_path: Path, topic_prefix: str) -> None:
    with start_broker(Settings(), listen="127.0.0.1:0", root=tmp_path) as broker, Wire(broker.bootstrap_servers) as wire:
        wire.create_topic(topic_prefix)
        wire.delete_topic(topic_prefix)
        broker.kill()
    (tmp_path / "broker" / "topics" / "left-by-a-crash").mkdir()
    with start_broker(Settings(), listen="127.0.0.1:0", root=tmp_path) as broker, Wire(broker.bootstrap_servers) as wire:
        assert wire.metadata(topic_prefix).error_code == 3
        assert list((tmp_path / "broker" / "topics").iterdir()) == []


def test_a_consumer_group_goes_on_after_a_restart(tmp_path: Path, topic_prefix: str) -> None:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    broker = start_broker(Settings(), listen=listen, root=tmp_path)
    producer = KafkaProducer(bootstrap_servers=listen)
    consumer = KafkaConsumer(topic_prefix, bootstrap_servers=listen, group_id="g", auto_offset_reset="earliest", metadata_max_age_ms=500)
    seen: list[bytes] = []

    def read_until(count: int) -> bool:
        try:
            seen.extend(record.value for records in consumer.poll(timeout_ms=100).values() for record in records)
        except KafkaError:
            return False
        return len(seen) >= count

    for value in (b"1", b"2"):
        producer.send(topic_prefix, value)
    eventually(lambda: read_until(2), "the first records do not come")
    consumer.commit()
    broker.kill()
    broker = start_broker(Settings(), listen=listen, root=tmp_path)
    for value in (b"3", b"4"):
        producer.send(topic_prefix, value)
    eventually(lambda: read_until(4), "the records after the restart do not come", timeout_s=40)
    assert sorted(seen) == [b"1", b"2", b"3", b"4"]
    consumer.close()
    producer.close()
    broker.stop()


def test_two_brokers_cannot_share_a_folder_and_the_error_says_so(tmp_path: Path) -> None:
    with start_broker(Settings(), listen="127.0.0.1:0", root=tmp_path), pytest.raises(BrokerError, match="another broker is using"):
        start_broker(Settings(), listen="127.0.0.1:0", root=tmp_path)


def test_a_port_in_use_is_named_in_the_error(tmp_path: Path) -> None:
    with start_broker(Settings(), listen="127.0.0.1:0", root=tmp_path / "a") as broker, pytest.raises(BrokerError, match="cannot listen on"):
        start_broker(Settings(), listen=broker.bootstrap_servers, root=tmp_path / "b")


def test_each_start_is_a_leader_epoch_of_its_own_and_old_epochs_end_where_the_next_begins(tmp_path: Path, topic_prefix: str) -> None:
    with start_broker(Settings(), root=tmp_path) as broker, Wire(broker.bootstrap_servers) as wire:
        wire.create_topic(topic_prefix)
        wire.produce(topic_prefix, batch([b"a", b"b"], timestamps=[1_000, 2_000]))
        first = wire.leader_epoch(topic_prefix)
    with start_broker(Settings(), root=tmp_path):
        pass
    with start_broker(Settings(), root=tmp_path) as broker, Wire(broker.bootstrap_servers) as wire:
        last = wire.leader_epoch(topic_prefix)
        assert first < last - 1
        wire.produce(topic_prefix, batch([b"c"], timestamps=[3_000]))
        assert wire.epoch_end(topic_prefix, first) == (0, first, 2)
        assert wire.epoch_end(topic_prefix, last - 1) == (0, first, 2)  # a start that wrote nothing
        assert wire.epoch_end(topic_prefix, last) == (0, last, 3)
        assert wire.epoch_end(topic_prefix, first - 1) == (0, first - 1, 0)
        assert [wire.list_offset(topic_prefix, at).leader_epoch for at in (-2, 1_500, 2_500, -1)] == [first, first, last, last]
        assert wire.epoch_end(topic_prefix, last, current=first)[0] == FENCED
        request = wire.fetch_request(topic_prefix, 0)
        request.topics[0].partitions[0].current_leader_epoch = first
        assert wire.call(request, 11).responses[0].partitions[0].error_code == FENCED
        wire.delete_records(topic_prefix, 2)
        assert wire.epoch_end(topic_prefix, first) == (0, first, 2)


def test_a_consumer_that_read_beyond_a_cut_is_told_by_its_client(tmp_path: Path, topic_prefix: str) -> None:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    partition = TopicPartition(topic_prefix, 0)
    consumer = None
    try:
        with start_broker(Settings(), listen=listen, root=tmp_path) as broker, Wire(listen) as wire:
            wire.create_topic(topic_prefix)
            wire.produce(topic_prefix, batch([b"a"]))
            (log,) = (tmp_path / "broker" / "topics").glob("*/0/*.log")
            size_bytes = log.stat().st_size
            wire.produce(topic_prefix, batch([b"b"]))
            consumer = KafkaConsumer(bootstrap_servers=listen, auto_offset_reset="none", enable_auto_commit=False, retry_backoff_ms=20)
            consumer.assign([partition])
            consumer.seek(partition, 0)
            _poll_until(consumer, partition, 2)
            broker.kill()
        os.truncate(log, size_bytes)
        with start_broker(Settings(), listen=listen, root=tmp_path), Wire(listen) as wire:
            wire.produce(topic_prefix, batch([b"c", b"d"]))
            with pytest.raises(LogTruncationError):
                _poll_until(consumer, partition, 3)
    finally:
        if consumer is not None:
            consumer.close()


def _poll_until(consumer: KafkaConsumer, partition: TopicPartition, position: int) -> None:
    def is_there() -> bool:
        consumer.poll(timeout_ms=100)
        return bool(consumer.position(partition) >= position)

    eventually(is_there, f"the consumer did not get to offset {position}")
