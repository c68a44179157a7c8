"""Produce and InitProducerId.

Order, for every partition: (1) check the batch (format, CRC, size, timestamps); (2) recognise a repetition; (3) append; and only then (4) the
answer. With one replica, acks=all and acks=1 mean the same. Cost per batch: one CRC pass and one write, the records stay compressed.
"""

import time
from typing import Any

from kafka.protocol.producer import InitProducerIdResponse, ProduceResponse

from ops.broker.batch import check_produced
from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.dispatch import Body, CloseConnection, RequestContext
from ops.broker.producers import ProducerIds
from ops.broker.topics import Catalogue, Topic

_Topic = ProduceResponse.TopicProduceResponse
_Partition = _Topic.PartitionProduceResponse


class ProduceApi:
    """Handlers for producers."""

    def __init__(self, catalogue: Catalogue, producer_ids: ProducerIds) -> None:
        self._catalogue = catalogue
        self._producer_ids = producer_ids

    def produce(self, context: RequestContext, request: Any) -> Body:
        """Append the batches; None for acks=0, whose failures close the connection, because that is all a client can notice."""
        if request.acks not in (-1, 0, 1):
            raise ProtocolError(ErrorCode.INVALID_REQUIRED_ACKS, f"acks is {request.acks}; it must be 0, 1 or -1 (all)")
        if request.transactional_id is not None:
            raise ProtocolError(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "this broker has no transactions; use Apache Kafka for them")
        topics = [
            _Topic(
                name=topic.name, topic_id=topic.topic_id, partition_responses=[self._append(context, topic, part) for part in topic.partition_data]
            )
            for topic in request.topic_data
        ]
        if request.acks == 0:
            _close_on_failure(topics)
            return None
        return ProduceResponse(responses=topics, throttle_time_ms=0)

    def _append(self, context: RequestContext, wanted: Any, part: Any) -> Any:
        try:
            log = self._catalogue.partition(wanted.name, wanted.topic_id, part.index)
            topic = self._catalogue.resolve(wanted.name, wanted.topic_id)
            base_offset = log.append(part.records, self._checked(context, topic, part.records), self._catalogue.limits(topic).segment_bytes)
        except ProtocolError as error:
            return _partition(part.index, error.code, -1, -1, str(error))
        return _partition(part.index, ErrorCode.NONE, base_offset, log.start_offset, None)

    def _checked(self, context: RequestContext, topic: Topic, records: bytes | None) -> Any:
        header = check_produced(records, context.version)
        limits = self._catalogue.limits(topic)
        if header.size_bytes > limits.max_message_bytes:
            raise ProtocolError(
                ErrorCode.MESSAGE_TOO_LARGE, f"a batch of {header.size_bytes} bytes; max.message.bytes of {topic.name} is {limits.max_message_bytes}"
            )
        if header.max_timestamp > time.time() * 1000 + limits.future_limit_ms:
            raise ProtocolError(
                ErrorCode.INVALID_TIMESTAMP, f"timestamp {header.max_timestamp} is more than {limits.future_limit_ms} ms ahead of the broker's clock"
            )
        return header

    def init_producer_id(self, _context: RequestContext, request: Any) -> Body:
        """A new id for an idempotent producer, or its next epoch; transactions are refused."""
        if request.transactional_id is not None:
            raise ProtocolError(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "this broker has no transactions; use Apache Kafka for them")
        return InitProducerIdResponse(throttle_time_ms=0, error_code=0, producer_id=self._producer_ids.take(), producer_epoch=0)


def _close_on_failure(topics: list[Any]) -> None:
    failed = [part for topic in topics for part in topic.partition_responses if part.error_code]
    if failed:
        raise CloseConnection(f"a Produce with acks=0 failed: {failed[0].error_message}")


def _partition(index: int, code: ErrorCode, base_offset: int, start_offset: int, message: str | None) -> Any:
    return _Partition(
        index=index,
        error_code=int(code),
        base_offset=base_offset,
        log_append_time_ms=-1,
        log_start_offset=start_offset,
        record_errors=[],
        error_message=message,
    )
