"""Kafka group offsets: published for lag monitors, never read. The truth is in the dataset's manifest."""

from collections.abc import Mapping

from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from pipelines.kafka.clients import broker_errors, open_consumer
from schemas.settings import Settings


def publish_group_offsets(settings: Settings, group: str, topic: str, next_offsets: Mapping[int, int]) -> None:
    """Commit ``next_offsets`` (partition -> offset) for the group. Raises BrokerUnavailable, which callers may log and forget.

    Partitions that the topic no longer has are left out: it was created again, which the next plan says better than a timeout here.
    """
    with broker_errors(settings.kafka, f"publish the offsets of group {group}"), open_consumer(settings, group_id=group) as consumer:
        there = consumer.partitions_for_topic(topic) or ()
        named = {TopicPartition(topic, partition): offset for partition, offset in next_offsets.items() if partition in there}
        offsets = {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in named.items()}
        consumer.commit(offsets, timeout_ms=int(settings.kafka.request_timeout_s * 1000))
