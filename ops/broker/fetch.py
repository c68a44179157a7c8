"""Fetch: records from an offset on, now or when there are enough of them.

Honours max bytes (of the request and of each partition; the first batch comes even if it alone is larger, KIP-74), min bytes and max wait. A
request that has to wait is woken by appends and deletions; one that reads a segment with newer ones behind it never waits. Sessions (KIP-227)
are not kept: session id 0 tells the client so.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, NamedTuple

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.dispatch import Body, RequestContext
from ops.broker.fetch_response import FetchedPartition, FetchedTopic, encode_fetch
from ops.broker.log import PartitionLog
from ops.broker.topics import Catalogue

MAX_RESPONSE_BYTES = 55 * 2**20
"""As ``fetch.max.bytes`` of Apache Kafka's broker."""


class _Available(NamedTuple):
    size_bytes: int
    is_final: bool
    """Waiting changes nothing: something is wrong with the partition, or the segment is complete and newer ones follow."""


class FetchApi:
    """The Fetch handler."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def fetch(self, context: RequestContext, request: Any) -> Body | Awaitable[Body]:
        """Answer at once if min bytes are there, an error is due, or the client does not want to wait."""
        if request.session_id != 0:
            return encode_fetch(context.version, ErrorCode.FETCH_SESSION_ID_NOT_FOUND, [])
        if request.max_wait_ms > 0 and not self._is_ready(request):
            return self._wait(context, request)
        return self._read(context, request)

    def _is_ready(self, request: Any) -> bool:
        total_bytes = 0
        for topic in request.topics:
            for wanted in topic.partitions:
                available = self._available(topic, wanted)
                total_bytes += min(available.size_bytes, wanted.partition_max_bytes)
                if available.is_final:
                    return True
        return total_bytes >= request.min_bytes or not request.topics

    def _available(self, topic: Any, wanted: Any) -> _Available:
        try:
            log = self._log(topic, wanted)
            return _Available(log.bytes_from(wanted.fetch_offset), is_final=log.is_far_behind(wanted.fetch_offset))
        except ProtocolError:
            return _Available(0, is_final=True)

    def _log(self, topic: Any, wanted: Any) -> PartitionLog:
        log = self._catalogue.partition(topic.topic, topic.topic_id, wanted.partition)
        check_leader_epoch(wanted.current_leader_epoch, log)
        return log

    async def _wait(self, context: RequestContext, request: Any) -> Body:
        """Sleep until the request is ready or max wait is over, then read what there is."""
        if self._is_ready(request):  # something was appended before this task got its turn
            return self._read(context, request)
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def look() -> None:
            if not ready.done() and self._is_ready(request):
                ready.set_result(None)

        logs = [self._catalogue.partition(topic.topic, topic.topic_id, wanted.partition) for topic in request.topics for wanted in topic.partitions]
        for log in logs:
            log.waiters.add(look)
        try:
            await asyncio.wait((ready,), timeout=request.max_wait_ms / 1000)
        finally:
            for log in logs:
                log.waiters.discard(look)
        return self._read(context, request)

    def _read(self, context: RequestContext, request: Any) -> Body:
        left_bytes = min(request.max_bytes, MAX_RESPONSE_BYTES)
        is_first = True
        topics = []
        for topic in request.topics:
            partitions = []
            for wanted in topic.partitions:
                fetched = self._read_partition(topic, wanted, left_bytes, is_first=is_first)
                left_bytes -= len(fetched.records)
                is_first = is_first and not fetched.records
                partitions.append(fetched)
            topics.append(FetchedTopic(topic.topic, topic.topic_id, partitions))
        return encode_fetch(context.version, ErrorCode.NONE, topics)

    def _read_partition(self, topic: Any, wanted: Any, left_bytes: int, *, is_first: bool) -> FetchedPartition:
        try:
            log = self._log(topic, wanted)
            max_bytes = max(min(wanted.partition_max_bytes, left_bytes), 0)
            records = log.read(wanted.fetch_offset, max_bytes, at_least_one=is_first)
        except ProtocolError as error:
            return FetchedPartition(wanted.partition, error.code, -1, -1, b"")
        return FetchedPartition(wanted.partition, ErrorCode.NONE, log.next_offset, log.start_offset, records)


def check_leader_epoch(epoch: int, log: PartitionLog) -> None:
    """Refuse a client whose leader epoch is not the current one; -1 means that the client does not ask."""
    current = log.epochs.latest
    if epoch > current:
        raise ProtocolError(ErrorCode.UNKNOWN_LEADER_EPOCH, f"leader epoch {epoch} is newer than {current}")
    if 0 <= epoch < current:
        raise ProtocolError(ErrorCode.FENCED_LEADER_EPOCH, f"leader epoch {epoch} is older than {current}")
