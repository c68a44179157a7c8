"""Handlers of OffsetCommit, OffsetFetch and OffsetDelete."""

from typing import Any

from kafka.protocol.consumer import (
    ConsumerProtocolSubscription,
    ConsumerProtocolType,
    OffsetCommitResponse,
    OffsetDeleteResponse,
    OffsetFetchResponse,
)

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.dispatch import Body, RequestContext
from ops.broker.group_api import Groups
from ops.broker.groups import Group, GroupState
from ops.broker.offsets import Committed, TopicPartition
from ops.broker.topics import Catalogue

MAX_METADATA_BYTES = 4096
NOTHING_COMMITTED = Committed(-1, -1, "")


class OffsetApi:
    """Handlers for committed offsets."""

    def __init__(self, groups: Groups, catalogue: Catalogue) -> None:
        self._groups = groups
        self._catalogue = catalogue

    def commit(self, _context: RequestContext, request: Any) -> Body:
        """Store offsets for a member of the current generation, or for someone outside any generation if the group is empty."""
        self._check_committer(request)
        offsets: dict[TopicPartition, Committed] = {}
        topics = [
            OffsetCommitResponse.OffsetCommitResponseTopic(
                name=topic.name, partitions=[self._accept(topic.name, part, offsets) for part in topic.partitions]
            )
            for topic in request.topics
        ]
        self._groups.offsets.commit(request.group_id, offsets)
        return OffsetCommitResponse(throttle_time_ms=0, topics=topics)

    def _check_committer(self, request: Any) -> None:
        group = self._groups.find(request.group_id)
        generation = request.generation_id_or_member_epoch
        if generation < 0 and (group is None or not group.members):
            self._groups.get_or_create(request.group_id)
            return
        if group is None:
            raise ProtocolError(ErrorCode.ILLEGAL_GENERATION)
        member = group.member(request.member_id, request.group_instance_id, generation)
        group.heard_of(member)
        if group.state is GroupState.COMPLETING:
            raise ProtocolError(ErrorCode.REBALANCE_IN_PROGRESS)

    def _accept(self, name: str, part: Any, offsets: dict[TopicPartition, Committed]) -> Any:
        code = ErrorCode.NONE
        try:
            self._catalogue.partition(name, None, part.partition_index)
            metadata = part.committed_metadata or ""
            if len(metadata.encode("utf-8")) > MAX_METADATA_BYTES:
                raise ProtocolError(ErrorCode.OFFSET_METADATA_TOO_LARGE)
            offsets[TopicPartition(name, part.partition_index)] = Committed(part.committed_offset, part.committed_leader_epoch, metadata)
        except ProtocolError as error:
            code = error.code
        return OffsetCommitResponse.OffsetCommitResponseTopic.OffsetCommitResponsePartition(
            partition_index=part.partition_index, error_code=int(code)
        )

    def fetch(self, context: RequestContext, request: Any) -> Body:
        """Committed offsets of one group, or from version 8 on of several; -1 where nothing was committed."""
        if context.version < 8:
            topics = self._committed(OffsetFetchResponse.OffsetFetchResponseTopic, "OffsetFetchResponsePartition", request.group_id, request.topics)
            return OffsetFetchResponse(throttle_time_ms=0, topics=topics, error_code=0)
        return OffsetFetchResponse(throttle_time_ms=0, groups=[self._fetch_group(group) for group in request.groups])

    def _fetch_group(self, wanted: Any) -> Any:
        group_class = OffsetFetchResponse.OffsetFetchResponseGroup
        topics = self._committed(group_class.OffsetFetchResponseTopics, "OffsetFetchResponsePartitions", wanted.group_id, wanted.topics)
        return group_class(group_id=wanted.group_id, topics=topics, error_code=0)

    def _committed(self, topic_class: Any, partition_name: str, group_id: str, topics: Any) -> list[Any]:
        offsets = self._groups.offsets.of(group_id)
        if topics is None:
            wanted: dict[str, list[int]] = {}
            for key in sorted(offsets):
                wanted.setdefault(key.topic, []).append(key.partition)
        else:
            wanted = {topic.name: topic.partition_indexes for topic in topics}
        partition_class = getattr(topic_class, partition_name)
        return [
            topic_class(
                name=name,
                partitions=[_fetched(partition_class, index, offsets.get(TopicPartition(name, index), NOTHING_COMMITTED)) for index in indexes],
            )
            for name, indexes in wanted.items()
        ]

    def delete(self, _context: RequestContext, request: Any) -> Body:
        """Forget committed offsets of topics that no member of the group reads."""
        group = self._groups.find(request.group_id)
        if group is None:
            raise ProtocolError(ErrorCode.GROUP_ID_NOT_FOUND)
        if group.members and group.protocol_type != ConsumerProtocolType:
            raise ProtocolError(ErrorCode.NON_EMPTY_GROUP)
        subscribed = _subscribed_topics(group)
        topics = [self._delete_topic(request.group_id, topic, is_read=topic.name in subscribed) for topic in request.topics]
        return OffsetDeleteResponse(error_code=0, throttle_time_ms=0, topics=topics)

    def _delete_topic(self, group_id: str, topic: Any, *, is_read: bool) -> Any:
        code = ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC if is_read else ErrorCode.NONE
        if not is_read:
            self._groups.offsets.delete(group_id, [TopicPartition(topic.name, part.partition_index) for part in topic.partitions])
        topic_class = OffsetDeleteResponse.OffsetDeleteResponseTopic
        partition_class = topic_class.OffsetDeleteResponsePartition
        partitions = [partition_class(partition_index=part.partition_index, error_code=int(code)) for part in topic.partitions]
        return topic_class(name=topic.name, partitions=partitions)


def _fetched(partition_class: Any, index: int, committed: Committed) -> Any:
    return partition_class(
        partition_index=index,
        committed_offset=committed.offset,
        committed_leader_epoch=committed.leader_epoch,
        metadata=committed.metadata,
        error_code=0,
    )


def _subscribed_topics(group: Group) -> set[str]:
    """Topics named in the members' subscriptions, whose first two bytes are their version."""
    topics: set[str] = set()
    for member in group.members.values():
        for subscription in member.protocols.values():
            version = int.from_bytes(subscription[:2], "big")
            topics |= set(ConsumerProtocolSubscription.decode(subscription[2:], version=min(version, 3)).topics)
    return topics
