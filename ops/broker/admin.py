"""Handlers that change topics: create, delete, grow, cut off old records."""

from typing import Any

from kafka.protocol.admin import CreatePartitionsResponse, CreateTopicsResponse, DeleteRecordsResponse, DeleteTopicsResponse

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.config_api import describe_topic_configs
from ops.broker.configs import check_config
from ops.broker.dispatch import Body, RequestContext
from ops.broker.topics import Catalogue

DEFAULT = -1
"""Number of partitions or replicas when the client leaves it to the broker."""


class AdminApi:
    """Handlers for administrators."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def create_topics(self, _context: RequestContext, request: Any) -> Body:
        """Each topic is created or refused on its own."""
        names = [topic.name for topic in request.topics]
        results = [self._create(wanted, is_repeated=names.count(wanted.name) > 1, validate_only=request.validate_only) for wanted in request.topics]
        return CreateTopicsResponse(throttle_time_ms=0, topics=results)

    def _create(self, wanted: Any, *, is_repeated: bool, validate_only: bool) -> Any:
        result_class = CreateTopicsResponse.CreatableTopicResult
        try:
            if is_repeated:
                raise ProtocolError(ErrorCode.INVALID_REQUEST, f"topic {wanted.name} is in the request more than once")
            num_partitions = self._num_partitions(wanted)
            configs = {config.name: check_config(config.name, config.value) for config in wanted.configs}
            self._catalogue.check_new(wanted.name, num_partitions)
            created = None if validate_only else self._catalogue.create(wanted.name, num_partitions, configs)
        except ProtocolError as error:
            return result_class(name=wanted.name, topic_id=None, error_code=int(error.code), error_message=str(error), configs=[])
        return result_class(
            name=wanted.name,
            topic_id=created.id if created else None,
            error_code=0,
            error_message=None,
            num_partitions=num_partitions,
            replication_factor=1,
            configs=describe_topic_configs(CreateTopicsResponse.CreatableTopicResult.CreatableTopicConfigs, configs, self._catalogue.settings),
        )

    def _num_partitions(self, wanted: Any) -> int:
        if wanted.assignments:
            if wanted.num_partitions != DEFAULT or wanted.replication_factor != DEFAULT:
                raise ProtocolError(ErrorCode.INVALID_REQUEST, "give either assignments or numbers of partitions and replicas")
            if any(len(assignment.broker_ids) != 1 for assignment in wanted.assignments):
                raise ProtocolError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, "there is one broker, so each partition has one replica")
            return len(wanted.assignments)
        if wanted.replication_factor not in (DEFAULT, 1):
            raise ProtocolError(
                ErrorCode.INVALID_REPLICATION_FACTOR,
                f"replication factor {wanted.replication_factor}; the embedded broker is one node and keeps 1 copy",
            )
        return self._catalogue.settings.num_partitions if wanted.num_partitions == DEFAULT else int(wanted.num_partitions)

    def delete_topics(self, context: RequestContext, request: Any) -> Body:
        """By name, or from version 6 on by id."""
        wanted = (
            [(topic.name, topic.topic_id) for topic in request.topics] if context.version >= 6 else [(name, None) for name in request.topic_names]
        )
        return DeleteTopicsResponse(throttle_time_ms=0, responses=[self._delete(name, topic_id) for name, topic_id in wanted])

    def _delete(self, name: str | None, topic_id: Any) -> Any:
        code, message = ErrorCode.NONE, None
        try:
            topic = self._catalogue.resolve(name, topic_id)
            name, topic_id = topic.name, topic.id
            self._catalogue.delete(topic)
        except ProtocolError as error:
            code, message = error.code, str(error)
        return DeleteTopicsResponse.DeletableTopicResult(name=name, topic_id=topic_id, error_code=int(code), error_message=message)

    def create_partitions(self, _context: RequestContext, request: Any) -> Body:
        """Grow topics; a partition never goes away again."""
        results = [self._grow(wanted, validate_only=request.validate_only) for wanted in request.topics]
        return CreatePartitionsResponse(throttle_time_ms=0, results=results)

    def _grow(self, wanted: Any, *, validate_only: bool) -> Any:
        code, message = ErrorCode.NONE, None
        try:
            topic = self._catalogue.resolve(wanted.name, None)
            present = len(topic.partitions)
            if wanted.count <= present:
                raise ProtocolError(
                    ErrorCode.INVALID_PARTITIONS,
                    f"The topic {wanted.name} currently has {present} partition(s); {wanted.count} would not be an increase.",
                )
            if not validate_only:
                self._catalogue.add_partitions(topic, wanted.count)
        except ProtocolError as error:
            code, message = error.code, str(error)
        return CreatePartitionsResponse.CreatePartitionsTopicResult(name=wanted.name, error_code=int(code), error_message=message)

    def delete_records(self, _context: RequestContext, request: Any) -> Body:
        """Move log starts up."""
        topic_class = DeleteRecordsResponse.DeleteRecordsTopicResult
        topics = [topic_class(name=topic.name, partitions=[self._cut(topic.name, part) for part in topic.partitions]) for topic in request.topics]
        return DeleteRecordsResponse(throttle_time_ms=0, topics=topics)

    def _cut(self, name: str, part: Any) -> Any:
        code, low_watermark = ErrorCode.NONE, -1
        try:
            low_watermark = self._catalogue.partition(name, None, part.partition_index).delete_before(part.offset)
        except ProtocolError as error:
            code = error.code
        return DeleteRecordsResponse.DeleteRecordsTopicResult.DeleteRecordsPartitionResult(
            partition_index=part.partition_index, low_watermark=low_watermark, error_code=int(code)
        )
