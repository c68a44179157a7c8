"""Where things are: Metadata, FindCoordinator, DescribeCluster. The answer is always this one broker.

The broker is known to a client under the address that this client has reached it by, so one listener serves every interface.
"""

import logging
from typing import Any

from kafka.protocol.admin import DescribeClusterResponse
from kafka.protocol.metadata import FindCoordinatorResponse, MetadataResponse

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.dispatch import Body, RequestContext
from ops.broker.topics import Catalogue, Topic

logger = logging.getLogger(__name__)

NODE_ID = 1
GROUP_KEY = 0
_Topic = MetadataResponse.MetadataResponseTopic
_Partition = _Topic.MetadataResponsePartition


class MetadataApi:
    """Handlers that need nothing but the catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def metadata(self, context: RequestContext, request: Any) -> Body:
        """Topics by name or by id; a missing one is created if both the client and the settings allow it."""
        return MetadataResponse(
            throttle_time_ms=0,
            brokers=[MetadataResponse.MetadataResponseBroker(node_id=NODE_ID, host=context.peer.local_host, port=context.peer.local_port, rack=None)],
            cluster_id=self._catalogue.cluster_id,
            controller_id=NODE_ID,
            topics=self._wanted(context, request),
            error_code=0,
        )

    def _wanted(self, context: RequestContext, request: Any) -> list[Any]:
        if request.topics is None or (context.version == 0 and not request.topics):
            return [_describe(topic) for topic in self._catalogue]
        may_create = self._catalogue.settings.auto_create_topics and (context.version < 4 or request.allow_auto_topic_creation)
        return [self._find(wanted.name, wanted.topic_id, may_create=may_create) for wanted in request.topics]

    def _find(self, name: str | None, topic_id: Any, *, may_create: bool) -> Any:
        try:
            if name and may_create and self._catalogue.find(name) is None:
                logger.info("creating topic %s because a client asked for it", name)
                self._catalogue.create_default(name)
            if name and not may_create:
                self._catalogue.check_name(name)
            return _describe(self._catalogue.resolve(name, None if name else topic_id))
        except ProtocolError as error:
            return _Topic(error_code=int(error.code), name=name, topic_id=topic_id, is_internal=False, partitions=[])

    def find_coordinator(self, context: RequestContext, request: Any) -> Body:
        """This broker coordinates every group; there is no coordinator for transactions or share groups."""
        keys = request.coordinator_keys if context.version >= 4 else [request.key]
        is_group = request.key_type == GROUP_KEY
        code = ErrorCode.NONE if is_group else ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        values = {
            "node_id": NODE_ID if is_group else -1,
            "host": context.peer.local_host if is_group else "",
            "port": context.peer.local_port if is_group else -1,
            "error_code": int(code),
            "error_message": None if is_group else "this broker has no transactions; use Apache Kafka for them",
        }
        coordinators = [FindCoordinatorResponse.Coordinator(key=key, **values) for key in keys]
        return FindCoordinatorResponse(throttle_time_ms=0, coordinators=coordinators, **values)

    def describe_cluster(self, context: RequestContext, request: Any) -> Body:
        """One node that is broker and controller."""
        broker = DescribeClusterResponse.DescribeClusterBroker(
            broker_id=NODE_ID, host=context.peer.local_host, port=context.peer.local_port, rack=None, is_fenced=False
        )
        return DescribeClusterResponse(
            throttle_time_ms=0,
            error_code=0,
            error_message=None,
            endpoint_type=request.endpoint_type,
            cluster_id=self._catalogue.cluster_id,
            controller_id=NODE_ID,
            brokers=[broker],
        )


def _describe(topic: Topic) -> Any:
    partitions = [
        _Partition(
            error_code=0,
            partition_index=index,
            leader_id=NODE_ID,
            leader_epoch=log.epochs.latest,
            replica_nodes=[NODE_ID],
            isr_nodes=[NODE_ID],
            offline_replicas=[],
        )
        for index, log in enumerate(topic.partitions)
    ]
    return _Topic(error_code=0, name=topic.name, topic_id=topic.id, is_internal=False, partitions=partitions)
