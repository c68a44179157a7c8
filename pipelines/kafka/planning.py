"""Which offsets the next dataset version takes in.

Invariant: a planned range begins at the offset where the version before ended and holds no offset that the log has already lost; what
retention took unread is an error, never a silent jump. Ends are those of read_committed: they stop before an open transaction.
Costs one bootstrap and two ListOffsets requests per partition leader.
"""

from collections.abc import Mapping

from kafka import TopicPartition

from pipelines.kafka.clients import broker_errors, open_consumer
from pipelines.kafka.shares import fair_shares
from pipelines.kafka.topics import missing
from schemas.errors import OffsetsLost
from schemas.manifest import OffsetRange
from schemas.settings import Settings


def plan_ranges(settings: Settings, topic: str, next_offsets: Mapping[int, int], max_records: int) -> dict[int, OffsetRange]:
    """At most ``max_records`` offsets, shared out fairly; every partition is in the answer, in order, with start == end if it has nothing new.

    ``next_offsets`` is empty for the first version, which starts where the log starts. A partition that is not in it later is new and
    starts at 0. Raises TopicMissing, OffsetsLost, BrokerUnavailable.
    """
    log = _log_ranges(settings, topic)
    starts = {partition: _start(topic, partition, span, next_offsets) for partition, span in log.items()}
    lost = sorted(set(next_offsets) - set(log))
    if lost:
        raise OffsetsLost(
            f"topic {topic!r} no longer has partitions {lost}: it was created again with fewer; start a new dataset under another --root"
        )
    shares = fair_shares({partition: span.end - starts[partition] for partition, span in log.items()}, max_records)
    return {partition: OffsetRange(start=start, end=start + shares[partition]) for partition, start in starts.items()}


def _log_ranges(settings: Settings, topic: str) -> dict[int, OffsetRange]:
    """First readable offset and last stable offset of every partition."""
    timeout_ms = int(settings.kafka.request_timeout_s * 1000)
    with broker_errors(settings.kafka, f"read the offsets of {topic}"), open_consumer(settings) as consumer:
        partitions = sorted(consumer.partitions_for_topic(topic) or ())
        if not partitions:
            raise missing(topic, settings)
        keys = [TopicPartition(topic, partition) for partition in partitions]
        # The ends are asked for first: a log start that moves in between is then seen as a loss, not as an impossible range.
        ends = consumer.end_offsets(keys, timeout_ms=timeout_ms)
        starts = consumer.beginning_offsets(keys, timeout_ms=timeout_ms)
    return {key.partition: OffsetRange(start=starts[key], end=max(starts[key], ends[key])) for key in keys}


def _start(topic: str, partition: int, log: OffsetRange, next_offsets: Mapping[int, int]) -> int:
    start = next_offsets.get(partition, 0) if next_offsets else log.start
    if start < log.start:
        raise offsets_lost(topic, partition, start, log.start)
    if start > log.end:
        raise OffsetsLost(
            f"{topic}[{partition}] ends at offset {log.end}, before offset {start} where the dataset goes on: the topic lost records or was "
            "created again; nothing was read. Restore the topic, or start a new dataset under another --root"
        )
    return start


def offsets_lost(topic: str, partition: int, start: int, log_start: int) -> OffsetsLost:
    """The error for offsets that were removed unread."""
    return OffsetsLost(
        f"offsets {start} to {log_start - 1} of {topic}[{partition}] were removed (retention or DeleteRecords) before any version read them; "
        "nothing was read. Publish those documents again into a new dataset under another --root, and give the topic a longer retention.ms"
    )
