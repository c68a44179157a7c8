"""Leader epochs: which leader of a partition wrote the records up to an offset, and whether the log still holds them.

Every record carries the epoch of the leader that wrote it. An unclean election, or a broker that comes back with an older copy of its disk, cuts
the log and lets it grow again under a newer epoch: offsets then stand for other records, and no other answer of Kafka says so. So whoever
keeps an offset keeps the epoch of the record before it, and asks where that epoch ends: below the offset, the log was cut.

Brokers that cannot be asked (before Kafka 2.3) have no epochs here: nothing is kept, nothing is compared.
Cost: one OffsetForLeaderEpoch request per leader and question. Source: KIP-320, KIP-279.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from kafka import KafkaAdminClient
from kafka.errors import IncompatibleBrokerVersion, NoError, UnsupportedVersionError, for_code
from kafka.protocol.consumer import OffsetForLeaderEpochRequest

CONSUMER = -1
"""The replica id of those who are none."""


class EpochEnd(NamedTuple):
    """What a leader says of an epoch: its largest epoch up to that one, and where it ends. Both negative: it knows of none."""

    epoch: int
    offset: int


class Leader(NamedTuple):
    """Who leads a partition, and under which epoch."""

    node: int
    epoch: int


def epoch_ends(admin: KafkaAdminClient, topic: str, leaders: Mapping[int, Leader], epochs: Mapping[int, int]) -> dict[int, EpochEnd]:
    """Where each partition's epoch ends; empty if the brokers cannot say. Raises KafkaError."""
    by_node: dict[int, list[int]] = defaultdict(list)
    for partition in epochs:
        by_node[leaders[partition].node].append(partition)
    try:
        answers = [_ask(admin, node, topic, {partition: epochs[partition] for partition in asked}) for node, asked in by_node.items()]
    except (IncompatibleBrokerVersion, UnsupportedVersionError):
        return {}
    return {partition: end for answer in answers for partition, end in answer.items()}


def epochs_before(admin: KafkaAdminClient, topic: str, leaders: Mapping[int, Leader], offsets: Mapping[int, int]) -> dict[int, int]:
    """The epoch of the record before each of these offsets. No offset may lie beyond the end of its log.

    The search goes down from the present epoch, so it asks once for each epoch that began since the record, and twice more. It stops at an epoch
    that ends exactly at the offset: this epoch shows a cut of the log as well, and brokers forget older epochs whose records are deleted and give
    one answer for all of them. A partition whose leader does not know its own epoch (some brokers keep none) is left out: later it would look as
    if it had been cut.
    """
    found: dict[int, int] = {}
    asked = {partition: leaders[partition].epoch for partition in offsets if leaders[partition].epoch >= 0}
    while asked:
        ends = epoch_ends(admin, topic, leaders, asked)
        older = {partition: end.epoch for partition, end in ends.items() if end.epoch >= 0 and end.offset >= offsets[partition]}
        found |= older
        asked = {
            partition: epoch - 1
            for partition, epoch in older.items()
            if 0 < epoch <= asked[partition] and ends[partition].offset > offsets[partition]
        }
    return found


def _ask(admin: KafkaAdminClient, node: int, topic: str, epochs: Mapping[int, int]) -> dict[int, EpochEnd]:
    part = OffsetForLeaderEpochRequest.OffsetForLeaderTopic.OffsetForLeaderPartition
    partitions = [part(partition=partition, current_leader_epoch=-1, leader_epoch=epoch) for partition, epoch in epochs.items()]
    topics = [OffsetForLeaderEpochRequest.OffsetForLeaderTopic(topic=topic, partitions=partitions)]
    # kafka-python's public interface has no call for this; tests/unit/test_kafka_private.py says what of it is used.
    response = admin._manager.run(_sent, admin, OffsetForLeaderEpochRequest(replica_id=CONSUMER, topics=topics), node)
    return {answer.partition: _end_of(answer) for found in response.topics for answer in found.partitions}


async def _sent(admin: KafkaAdminClient, request: Any, node: int) -> Any:
    return await admin._manager.send(request, node_id=node)


def _end_of(answer: Any) -> EpochEnd:
    error = for_code(answer.error_code)
    if error is not NoError:
        raise error(f"where leader epochs end in partition {answer.partition}")
    return EpochEnd(answer.leader_epoch, answer.end_offset)
