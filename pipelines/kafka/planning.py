"""Which offsets the next dataset version takes in, and which are lost.

Invariant: a planned range begins at the offset where the version before ended and holds no offset that the log has already lost. What
retention took unread is an error, and so is a log that was cut below that offset and may have grown again (epochs.py): never a silent jump. Ends
are those of read_committed: they stop before an open transaction.
Costs one bootstrap, one metadata request, and two ListOffsets requests and one OffsetForLeaderEpoch request per partition leader.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from kafka import KafkaAdminClient, TopicPartition
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from pipelines.kafka.clients import broker_errors, open_admin
from pipelines.kafka.epochs import EpochEnd, Leader, epoch_ends, epochs_before
from pipelines.kafka.shares import fair_shares
from pipelines.kafka.topics import described
from schemas.errors import OffsetsLost, SourceError
from schemas.lost_offsets import LossKind, LostOffsets
from schemas.manifest import OffsetRange
from schemas.settings import Settings


class Logs(NamedTuple):
    """The partitions of a topic, as their leaders describe them."""

    leaders: dict[int, Leader]
    ranges: dict[int, OffsetRange]
    """First readable offset and last stable offset."""
    epoch_ends: dict[int, EpochEnd]
    """Of those epochs that were asked about, where they end."""


def plan_ranges(
    settings: Settings, topic: str, next_offsets: Mapping[int, int], max_records: int, epochs: Mapping[int, int] | None = None
) -> dict[int, OffsetRange]:
    """At most ``max_records`` offsets, shared out fairly; every partition is in the answer, in order, with start == end if it has nothing new.

    ``next_offsets`` is empty for the first version, which starts where the log starts. A partition that is not in it later is new and
    starts at 0. ``epochs``: leader epoch of the record before each of them, where that is known. Raises TopicMissing, OffsetsLost,
    BrokerUnavailable.
    """
    logs = _logs(settings, topic, epochs or {})
    if lost := _lost(topic, logs, next_offsets, epochs or {}):
        raise OffsetsLost(f"{'; '.join(told(loss) for loss in lost)}. Nothing was read. {advice(lost)}")
    starts = {partition: next_offsets.get(partition, 0) if next_offsets else span.start for partition, span in logs.ranges.items()}
    shares = fair_shares({partition: span.end - starts[partition] for partition, span in logs.ranges.items()}, max_records)
    return {partition: OffsetRange(start=start, end=start + shares[partition]) for partition, start in starts.items()}


def find_lost(
    settings: Settings, topic: str, next_offsets: Mapping[int, int], epochs: Mapping[int, int], *, is_recreated: bool = False
) -> list[LostOffsets]:
    """What of the topic cannot be read on from where the dataset ended; empty if all can. Raises TopicMissing, BrokerUnavailable."""
    logs = _logs(settings, topic, {} if is_recreated else epochs)
    if not is_recreated:
        return _lost(topic, logs, next_offsets, epochs)
    starts = {partition: span.start for partition, span in logs.ranges.items()}
    return [
        LostOffsets(topic=topic, partition=partition, kind=LossKind.RECREATED, expected=next_offsets.get(partition, 0), resumed=starts.get(partition))
        for partition in sorted(starts.keys() | next_offsets.keys())
    ]


def leader_epochs(settings: Settings, topic: str, offsets: Mapping[int, int]) -> dict[int, int]:
    """Leader epoch of the record before each of these offsets; partitions whose brokers cannot say are left out."""
    if not offsets:
        return {}
    with broker_errors(settings.kafka, f"read the leader epochs of {topic}"), open_admin(settings) as admin:
        return epochs_before(admin, topic, _leaders(admin, settings, topic), offsets)


def check_not_cut(settings: Settings, topic: str, offsets: Mapping[int, int], epochs: Mapping[int, int]) -> None:
    """Raise SourceError if the log was cut below one of these offsets since its epoch was asked for."""
    if not epochs:
        return
    with broker_errors(settings.kafka, f"read the leader epochs of {topic}"), open_admin(settings) as admin:
        ends = epoch_ends(admin, topic, _leaders(admin, settings, topic), epochs)
    cut = sorted(partition for partition, end in ends.items() if end.offset < offsets[partition])
    if cut:
        raise SourceError(
            f"partitions {cut} of {topic} were cut while they were read (an unclean leader election, or a broker restored from a copy): what was "
            "read may be other records than those that stand there now; nothing was committed. Start again"
        )


def told(loss: LostOffsets) -> str:
    """What happened, in one clause."""
    place, first = f"{loss.topic}[{loss.partition}]", loss.expected
    if loss.kind is LossKind.REMOVED:
        assert loss.resumed is not None
        return f"offsets {first} to {loss.resumed - 1} of {place} were removed (retention or DeleteRecords) before any version read them"
    if loss.kind is LossKind.RECREATED:
        now = "is no longer there" if loss.resumed is None else f"begins anew at offset {loss.resumed}"
        return f"{place} {now}: the topic was created again, and the dataset read the one before it up to offset {first}"
    if loss.epoch is None:
        return f"{place} ends at offset {loss.resumed}, before offset {first} where the dataset goes on: the log was cut, or restored from a copy"
    return (
        f"{place} was cut below offset {first}, where the dataset goes on: leader epoch {loss.epoch}, which wrote the record before it, "
        f"{'ends at offset ' + str(loss.resumed) if loss.epoch_is_known else 'is unknown to its leader'} (an unclean leader election, or a broker "
        "restored from a copy); records that no version read may be gone, and others stand at the offsets of some that were read"
    )


def advice(lost: Collection[LostOffsets]) -> str:
    """What a person can do."""
    places = " ".join(f"{loss.partition}@{'gone' if loss.resumed is None else loss.resumed}" for loss in lost)
    return (
        f'Restore the topic, or accept the loss and go on behind it: `headrace ingest --accept-loss {places} --reason "WHY"`, or start a new dataset '
        "under another --root. A longer retention.ms keeps what is not read yet"
    )


def _logs(settings: Settings, topic: str, epochs: Mapping[int, int]) -> Logs:
    timeout_ms = int(settings.kafka.request_timeout_s * 1000)
    with broker_errors(settings.kafka, f"read the offsets of {topic}"), open_admin(settings) as admin:
        leaders = _leaders(admin, settings, topic)
        keys = [TopicPartition(topic, partition) for partition in leaders]
        # The ends are asked for first: a log start that moves in between is then seen as a loss, not as an impossible range.
        latest, earliest = dict.fromkeys(keys, OffsetSpec.LATEST), dict.fromkeys(keys, OffsetSpec.EARLIEST)
        ends = admin.list_partition_offsets(latest, isolation_level=IsolationLevel.READ_COMMITTED, timeout_ms=timeout_ms)
        starts = admin.list_partition_offsets(earliest, timeout_ms=timeout_ms)
        found = epoch_ends(admin, topic, leaders, {partition: epoch for partition, epoch in epochs.items() if partition in leaders})
    first, last = ({key.partition: answer.offset for key, answer in answers.items()} for answers in (starts, ends))
    ranges = {partition: OffsetRange(start=first[partition], end=max(first[partition], last[partition])) for partition in leaders}
    return Logs(leaders, ranges, found)


def _leaders(admin: KafkaAdminClient, settings: Settings, topic: str) -> dict[int, Leader]:
    partitions = described(admin, settings, [topic])[0]["partitions"]
    found = {part["partition_index"]: Leader(part["leader_id"], part.get("leader_epoch", -1)) for part in partitions}
    return dict(sorted(found.items()))


def _lost(topic: str, logs: Logs, next_offsets: Mapping[int, int], epochs: Mapping[int, int]) -> list[LostOffsets]:
    if not next_offsets:
        return []
    gone = [
        LostOffsets(topic=topic, partition=each, kind=LossKind.RECREATED, expected=next_offsets[each]) for each in next_offsets.keys() - logs.ranges
    ]
    found = [_lost_of(topic, partition, span, next_offsets.get(partition, 0), logs, epochs) for partition, span in logs.ranges.items()]
    return sorted([*gone, *(loss for loss in found if loss is not None)], key=lambda loss: loss.partition)


def _lost_of(topic: str, partition: int, log: OffsetRange, start: int, logs: Logs, epochs: Mapping[int, int]) -> LostOffsets | None:
    if start < log.start:
        return LostOffsets(topic=topic, partition=partition, kind=LossKind.REMOVED, expected=start, resumed=log.start, num_unread=log.start - start)
    end = logs.epoch_ends.get(partition)
    cut = {"topic": topic, "partition": partition, "kind": LossKind.CUT, "expected": start}
    if end is not None and end.epoch < 0:  # what stands below is anybody's guess: read all of it again, duplicates are dropped
        return LostOffsets(**cut, resumed=log.start, epoch=epochs[partition], epoch_is_known=False)
    if end is not None and end.offset < start:
        return LostOffsets(**cut, resumed=max(log.start, end.offset), epoch=epochs[partition])
    return LostOffsets(**cut, resumed=log.end) if start > log.end else None
