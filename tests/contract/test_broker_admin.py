"""Topics and configurations on the wire, as Apache Kafka answers."""

import uuid
from typing import Any

import pytest
from kafka.protocol.admin import (
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DeleteTopicsRequest,
    DescribeClusterRequest,
    DescribeConfigsRequest,
    IncrementalAlterConfigsRequest,
)
from kafka.protocol.metadata import FindCoordinatorRequest, MetadataRequest

from tests.contract.wire import Wire, batch, eventually

OUT_OF_RANGE, UNKNOWN_TOPIC, INVALID_TOPIC, EXISTS, INVALID_PARTITIONS, INVALID_REPLICAS, INVALID_CONFIG = 1, 3, 17, 36, 37, 38, 40
UNKNOWN_TOPIC_ID = 100


def create(wire: Wire, name: str, *, partitions: int = 1, replicas: int = 1, validate_only: bool = False, version: int = 7, **configs: str) -> Any:
    topic = CreateTopicsRequest.CreatableTopic
    entries = [topic.CreatableTopicConfig(name=key.replace("_", "."), value=value) for key, value in configs.items()]
    wanted = topic(name=name, num_partitions=partitions, replication_factor=replicas, assignments=[], configs=entries)
    return wire.call(CreateTopicsRequest(topics=[wanted], timeout_ms=10_000, validate_only=validate_only), version).topics[0]


def configs_of(wire: Wire, name: str) -> dict[str, tuple[str, int]]:
    resource = DescribeConfigsRequest.DescribeConfigsResource(resource_type=2, resource_name=name, configuration_keys=None)
    answer = wire.call(DescribeConfigsRequest(resources=[resource], include_synonyms=False, include_documentation=False), 4).results[0]
    assert answer.error_code == 0, answer.error_message
    return {config.name: (config.value, config.config_source) for config in answer.configs}


def test_a_created_topic_has_partitions_an_id_and_its_configs(wire: Wire, topic_prefix: str) -> None:
    created = create(wire, topic_prefix, partitions=3, retention_ms="12345")
    assert (created.error_code, created.num_partitions, created.replication_factor) == (0, 3, 1)
    assert {config.name: config.value for config in created.configs}["retention.ms"] == "12345"
    eventually(lambda: len(wire.metadata(topic_prefix).partitions) == 3, "the partitions do not come")
    described = wire.metadata(topic_prefix)
    assert described.topic_id == created.topic_id
    assert sorted(part.partition_index for part in described.partitions) == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"partitions": 0}, INVALID_PARTITIONS),
        ({"replicas": 3}, INVALID_REPLICAS),
        ({"no_such_config": "1"}, INVALID_CONFIG),
        ({"retention_ms": "soon"}, INVALID_CONFIG),
        ({"cleanup_policy": "shred"}, INVALID_CONFIG),
    ],
)
def test_impossible_topics_are_refused_with_the_reason(wire: Wire, topic_prefix: str, options: dict[str, Any], code: int) -> None:
    refused = create(wire, topic_prefix, **options)
    assert refused.error_code == code
    assert refused.error_message


@pytest.mark.parametrize("name", ["", ".", "..", "with space", "水", "x" * 250, "a/b"])
def test_impossible_names_are_refused(wire: Wire, name: str) -> None:
    assert create(wire, name).error_code == INVALID_TOPIC


def test_a_topic_is_created_once(wire: Wire, topic_prefix: str) -> None:
    assert create(wire, topic_prefix).error_code == 0
    assert create(wire, topic_prefix).error_code == EXISTS


def test_validate_only_creates_nothing(wire: Wire, topic_prefix: str) -> None:
    assert create(wire, topic_prefix, validate_only=True).error_code == 0
    assert wire.metadata(topic_prefix).error_code == UNKNOWN_TOPIC


def test_metadata_creates_a_missing_topic_only_if_the_client_allows_it(wire: Wire, topic_prefix: str) -> None:
    assert wire.metadata(topic_prefix, create=False).error_code == UNKNOWN_TOPIC
    eventually(lambda: not wire.metadata(topic_prefix, create=True).error_code, "the topic is not created")
    assert len(wire.metadata(topic_prefix).partitions) == 2


def test_metadata_answers_by_id_and_names_bad_ones(wire: Wire, topic_prefix: str) -> None:
    topic_id = wire.create_topic(topic_prefix)
    wanted = [MetadataRequest.MetadataRequestTopic(name=None, topic_id=key) for key in (topic_id, uuid.uuid4())]
    found, missing = sorted(wire.call(MetadataRequest(topics=wanted, allow_auto_topic_creation=False), 12).topics, key=lambda topic: topic.error_code)
    assert (found.error_code, found.name, found.topic_id) == (0, topic_prefix, topic_id)
    assert missing.error_code == UNKNOWN_TOPIC_ID
    assert wire.metadata("with space", create=True).error_code == INVALID_TOPIC


def test_a_recreated_topic_is_another_topic(wire: Wire, topic_prefix: str) -> None:
    first = wire.create_topic(topic_prefix)
    wire.produce(topic_prefix, batch([b"old"]))
    wire.delete_topic(topic_prefix)
    second = wire.create_topic(topic_prefix)
    assert first != second
    assert wire.list_offset(topic_prefix, -1).offset == 0


def test_topics_can_be_deleted_by_id_and_missing_ones_are_named_so(wire: Wire, topic_prefix: str) -> None:
    topic_id = wire.create_topic(topic_prefix)
    request = DeleteTopicsRequest(topics=[DeleteTopicsRequest.DeleteTopicState(name=None, topic_id=topic_id)], timeout_ms=10_000)
    answer = wire.call(request, 6).responses[0]
    assert (answer.error_code, answer.name) == (0, topic_prefix)
    assert wire.call(request, 6).responses[0].error_code == UNKNOWN_TOPIC_ID
    assert wire.call(DeleteTopicsRequest(topic_names=[topic_prefix], timeout_ms=10_000), 5).responses[0].error_code == UNKNOWN_TOPIC


def test_partitions_can_be_added_and_not_taken_away(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix)

    def grow(count: int) -> int:
        wanted = CreatePartitionsRequest.CreatePartitionsTopic(name=topic_prefix, count=count, assignments=None)
        request = CreatePartitionsRequest(topics=[wanted], timeout_ms=10_000, validate_only=False)
        return int(wire.call(request, 3).results[0].error_code)

    assert grow(3) == 0
    eventually(lambda: not wire.produce(topic_prefix, batch([b"x"]), partition=2).error_code, "the new partition takes nothing")
    assert len(wire.metadata(topic_prefix).partitions) == 3
    assert grow(3) == grow(2) == INVALID_PARTITIONS


def test_deleted_records_move_the_log_start(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix)
    for value in (b"a", b"b", b"c"):
        wire.produce(topic_prefix, batch([value, value]))
    answer = wire.delete_records(topic_prefix, 3)
    assert (answer.error_code, answer.low_watermark) == (0, 3)
    assert wire.list_offset(topic_prefix, -2).offset == 3
    assert wire.fetch(topic_prefix, 2).error_code == OUT_OF_RANGE
    assert wire.fetch(topic_prefix, 3).error_code == 0
    assert wire.delete_records(topic_prefix, 7).error_code == OUT_OF_RANGE
    assert wire.delete_records(topic_prefix, 1).low_watermark == 3
    assert wire.delete_records(topic_prefix, -1).low_watermark == 6
    assert (wire.list_offset(topic_prefix, -2).offset, wire.list_offset(topic_prefix, -1).offset) == (6, 6)
    assert wire.produce(topic_prefix, batch([b"d"])).base_offset == 6
    assert wire.list_offset(topic_prefix, 0).offset == 6


def test_configs_are_described_with_their_source_and_can_be_changed(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix, max_message_bytes="5000")
    configs = configs_of(wire, topic_prefix)
    assert configs["max.message.bytes"] == ("5000", 1)
    assert configs["retention.ms"][0] == "604800000"
    assert configs["cleanup.policy"] == ("delete", 5)
    entry = IncrementalAlterConfigsRequest.AlterConfigsResource
    changes = [
        entry.AlterableConfig(name="max.message.bytes", config_operation=1, value=None),
        entry.AlterableConfig(name="retention.ms", config_operation=0, value="1000000"),
        entry.AlterableConfig(name="cleanup.policy", config_operation=2, value="compact"),
    ]
    request = IncrementalAlterConfigsRequest(resources=[entry(resource_type=2, resource_name=topic_prefix, configs=changes)], validate_only=False)
    assert wire.call(request, 1).responses[0].error_code == 0
    eventually(lambda: configs_of(wire, topic_prefix)["retention.ms"] == ("1000000", 1), "the change does not show")
    configs = configs_of(wire, topic_prefix)
    assert configs["max.message.bytes"][0] == "1048588"
    assert set(configs["cleanup.policy"][0].split(",")) == {"delete", "compact"}


def test_a_wrong_config_change_changes_nothing(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix)
    entry = IncrementalAlterConfigsRequest.AlterConfigsResource
    changes = [entry.AlterableConfig(name=name, config_operation=0, value="77") for name in ("retention.bytes", "no.such.config")]
    request = IncrementalAlterConfigsRequest(resources=[entry(resource_type=2, resource_name=topic_prefix, configs=changes)], validate_only=False)
    assert wire.call(request, 1).responses[0].error_code == INVALID_CONFIG
    assert configs_of(wire, topic_prefix)["retention.bytes"][0] == "-1"


def test_the_cluster_has_a_name_and_a_coordinator_for_groups(wire: Wire) -> None:
    cluster = wire.call(DescribeClusterRequest(include_cluster_authorized_operations=False, endpoint_type=1), 1)
    assert cluster.cluster_id
    assert [broker.broker_id for broker in cluster.brokers] == [1]
    found = wire.call(FindCoordinatorRequest(key="g", key_type=0), 3)
    assert (found.error_code, found.node_id, found.host) == (0, 1, "127.0.0.1")


def test_the_end_of_the_leader_epoch_is_the_end_of_the_log(wire: Wire, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix)
    wire.produce(topic_prefix, batch([b"a", b"b"]))
    epoch = wire.leader_epoch(topic_prefix)
    assert wire.epoch_end(topic_prefix, epoch) == (0, epoch, 2)
    assert wire.epoch_end(topic_prefix, epoch + 1) == (0, -1, -1)
