"""What we use of kafka-python beyond its public interface: a version that renames some of it fails here, by name, not in the middle of a stream."""

import inspect

import kafka
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import OffsetForLeaderEpochRequest
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatch

from pipelines.kafka.clients import open_admin, open_consumer
from pipelines.kafka.records import partition_records
from schemas.settings import Settings
from tests.broker_process import BrokerProcess

USED = {
    Fetcher: ["PartitionRecords"],
    Fetcher.PartitionRecords: ["_unpack_records"],
    MemoryRecords: ["next_batch"],
    DefaultRecordBatch: ["_maybe_uncompress", "_assert_has_codec", "_read_msg", "__next__"],
    LegacyRecordBatch: ["_decompress", "_read_all_headers", "_read_header", "_read_key_value"],
}
"""pipelines/kafka/records.py and legacy.py override or call these."""


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in USED.items() for name in names])
def test_kafka_python_still_has_what_tolerant_reading_overrides(owner: type, name: str) -> None:
    assert hasattr(owner, name), f"kafka-python {kafka.__version__} has no {owner.__qualname__}.{name} any more: see pipelines/kafka/records.py"


def test_kafka_python_still_gives_batches_and_records_the_same_fields() -> None:
    batch = {slot for owner in DefaultRecordBatch.__mro__ for slot in getattr(owner, "__slots__", ())}
    needed = {"_buffer", "_pos", "_num_records", "_decompressed"}
    assert needed <= batch, f"kafka-python {kafka.__version__}: DefaultRecordBatch has no {needed - batch}; see pipelines/kafka/records.py"
    names = list(inspect.signature(DefaultRecord).parameters)
    assert names == ["size_in_bytes", "offset", "timestamp", "timestamp_type", "key", "value", "headers"], (
        f"kafka-python {kafka.__version__}: DefaultRecord takes {names}; see pipelines/kafka/records.py and legacy.py"
    )


def test_clients_still_have_the_parts_that_are_reached_into(broker: BrokerProcess) -> None:
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": broker.bootstrap_servers}})
    version = kafka.__version__
    with open_consumer(settings) as consumer:
        assert isinstance(consumer, KafkaConsumer)
        fetcher = getattr(consumer, "_fetcher", None)
        assert isinstance(fetcher, Fetcher), f"kafka-python {version}: KafkaConsumer has no _fetcher; see pipelines/kafka/reading.py"
        for name in ("_next_partition_records", "_completed_fetches", "_fetch_futures"):
            assert hasattr(fetcher, name), f"kafka-python {version}: the fetcher has no {name}; see pipelines/kafka/clients.py"
        for name in ("_paused_partition_records", "_paused_completed_fetches"):
            assert isinstance(getattr(fetcher, name, None), dict), (
                f"kafka-python {version}: the fetcher has no {name}; see pipelines/kafka/reading.py"
            )
        fetcher.PartitionRecords = partition_records(2**20)
        made = inspect.getsource(Fetcher)
        assert "self.PartitionRecords(" in made, f"kafka-python {version}: the fetcher does not make self.PartitionRecords any more; see reading.py"
        key = TopicPartition("some", 0)
        consumer.assign([key])
        consumer.seek(key, 7)
        assert consumer._subscription.assignment[key].position.offset == 7, f"kafka-python {version}: see pipelines/kafka/reading.py"
    with open_admin(settings) as admin:
        assert isinstance(admin, KafkaAdminClient)
        manager = getattr(admin, "_manager", None)
        for name in ("run", "send"):
            assert callable(getattr(manager, name, None)), f"kafka-python {version}: the admin client has no _manager.{name}; see kafka/epochs.py"
    part = OffsetForLeaderEpochRequest.OffsetForLeaderTopic.OffsetForLeaderPartition
    assert part(partition=1, current_leader_epoch=-1, leader_epoch=2).leader_epoch == 2, f"kafka-python {version}: see kafka/epochs.py"
