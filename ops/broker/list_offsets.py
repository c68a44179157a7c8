"""ListOffsets and OffsetForLeaderEpoch: which offset stands for a time, a beginning or an end.

A time is looked up in the index (first batch that reaches it) and then inside that one batch, whose records are decoded for it.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from kafka.protocol.consumer import ListOffsetsResponse, OffsetForLeaderEpochResponse
from kafka.record import MemoryRecords

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.dispatch import Body, RequestContext
from ops.broker.epochs import NOT_BEGUN, UNKNOWN
from ops.broker.fetch import check_leader_epoch
from ops.broker.log import PartitionLog
from ops.broker.topics import Catalogue

LATEST, EARLIEST, MAX_TIMESTAMP, EARLIEST_LOCAL, LATEST_TIERED = -1, -2, -3, -4, -5


class _Found(NamedTuple):
    offset: int
    timestamp_ms: int
    leader_epoch: int


NOT_FOUND = _Found(UNKNOWN, UNKNOWN, UNKNOWN)


class OffsetsApi:
    """Handlers for offset questions."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def list_offsets(self, _context: RequestContext, request: Any) -> Body:
        """One offset per partition asked for."""
        topic_class = ListOffsetsResponse.ListOffsetsTopicResponse
        topics = [
            topic_class(name=topic.name, partitions=[self._list(topic.name, wanted) for wanted in topic.partitions]) for topic in request.topics
        ]
        return ListOffsetsResponse(throttle_time_ms=0, topics=topics)

    def _list(self, name: str, wanted: Any) -> Any:
        code, found = ErrorCode.NONE, NOT_FOUND
        try:
            log = self._catalogue.partition(name, None, wanted.partition_index)
            check_leader_epoch(wanted.current_leader_epoch, log)
            found = find_offset(log, wanted.timestamp)
        except ProtocolError as error:
            code = error.code
        return ListOffsetsResponse.ListOffsetsTopicResponse.ListOffsetsPartitionResponse(
            partition_index=wanted.partition_index,
            error_code=int(code),
            timestamp=found.timestamp_ms,
            offset=found.offset,
            leader_epoch=found.leader_epoch,
        )

    def offset_for_leader_epoch(self, _context: RequestContext, request: Any) -> Body:
        """Where an epoch ends: where the next one begins, or the log ends."""
        topic_class = OffsetForLeaderEpochResponse.OffsetForLeaderTopicResult
        topics = [
            topic_class(topic=topic.topic, partitions=[self._end_of(topic.topic, wanted) for wanted in topic.partitions]) for topic in request.topics
        ]
        return OffsetForLeaderEpochResponse(throttle_time_ms=0, topics=topics)

    def _end_of(self, name: str, wanted: Any) -> Any:
        code, end = ErrorCode.NONE, NOT_BEGUN
        try:
            log = self._catalogue.partition(name, None, wanted.partition)
            check_leader_epoch(wanted.current_leader_epoch, log)
            end = log.epochs.end_of(wanted.leader_epoch, log.next_offset)
        except ProtocolError as error:
            code = error.code
        return OffsetForLeaderEpochResponse.OffsetForLeaderTopicResult.EpochEndOffset(
            error_code=int(code), partition=wanted.partition, leader_epoch=end.epoch, end_offset=end.offset
        )


def find_offset(log: PartitionLog, timestamp_ms: int) -> _Found:
    """Offset for a time, or for one of the protocol's special values."""
    special: dict[int, Callable[[PartitionLog], _Found]] = {
        LATEST: lambda log: _Found(log.next_offset, UNKNOWN, log.epochs.latest),
        EARLIEST: lambda log: _Found(log.start_offset, UNKNOWN, log.epochs.of(log.start_offset)),
        EARLIEST_LOCAL: lambda log: _Found(log.start_offset, UNKNOWN, log.epochs.of(log.start_offset)),
        MAX_TIMESTAMP: lambda log: _first_reaching(log, log.newest_ms),
        LATEST_TIERED: lambda _log: NOT_FOUND,
    }
    if timestamp_ms in special:
        return special[timestamp_ms](log)
    if timestamp_ms < 0:
        raise ProtocolError(ErrorCode.UNSUPPORTED_VERSION, f"offset specification {timestamp_ms} is not supported")
    return _first_reaching(log, timestamp_ms)


def _first_reaching(log: PartitionLog, timestamp_ms: int) -> _Found:
    """The first record at or after this time that has not been deleted."""
    batches = log.batches_reaching(timestamp_ms) if timestamp_ms >= 0 else ()
    for record in chain.from_iterable(MemoryRecords(batch).next_batch() for batch in batches):
        if record.timestamp >= timestamp_ms and record.offset >= log.start_offset:
            return _Found(record.offset, record.timestamp, log.epochs.of(record.offset))
    return NOT_FOUND
