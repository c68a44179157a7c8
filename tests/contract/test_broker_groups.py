"""Consumer groups on the wire: joins, generations, evictions and commits as Apache Kafka answers them."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from kafka.protocol.admin import DeleteGroupsRequest, DescribeGroupsRequest, ListGroupsRequest
from kafka.protocol.consumer import (
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    OffsetCommitRequest,
    OffsetDeleteRequest,
    OffsetFetchRequest,
    SyncGroupRequest,
)

from tests.contract.conftest import KafkaUnderTest
from tests.contract.wire import Wire, eventually

NONE, UNKNOWN_TOPIC, METADATA_TOO_LARGE = 0, 3, 12
ILLEGAL_GENERATION, INCONSISTENT_PROTOCOL, INVALID_GROUP, UNKNOWN_MEMBER, BAD_SESSION_TIMEOUT, REBALANCING = 22, 23, 24, 25, 26, 27
NOT_EMPTY, NOT_FOUND, MEMBER_ID_REQUIRED, FENCED_INSTANCE = 68, 69, 79, 82
NEWEST_JOIN = 7
SUBSCRIPTION = bytes(2) + bytes(4) + b"\xff\xff\xff\xff"
"""Version 0, no topics, no user data; Apache Kafka never answers a join whose subscription it cannot read."""


class GroupMember:
    """One member on a connection of its own, which does only what a test tells it."""

    def __init__(self, bootstrap_servers: str, group: str, instance_id: str | None = None) -> None:
        self.wire = Wire(bootstrap_servers)
        self.group, self.instance_id = group, instance_id
        self.id, self.generation = "", -1
        self._pool = ThreadPoolExecutor(1)

    def join_once(self, *, session_timeout_ms: int = 10_000, protocols: tuple[str, ...] = ("range",), version: int = NEWEST_JOIN) -> Any:
        offered = [JoinGroupRequest.JoinGroupRequestProtocol(name=name, metadata=SUBSCRIPTION) for name in protocols]
        request = JoinGroupRequest(
            group_id=self.group,
            session_timeout_ms=session_timeout_ms,
            rebalance_timeout_ms=10_000,
            member_id=self.id,
            group_instance_id=self.instance_id,
            protocol_type="consumer",
            protocols=offered,
        )
        answer = self.wire.call(request, version)
        if answer.error_code in (NONE, MEMBER_ID_REQUIRED):
            self.id, self.generation = answer.member_id, answer.generation_id
        return answer

    def join(self, **options: Any) -> Any:
        """Join, with the second step that KIP-394 asks of new members."""
        answer = self.join_once(**options)
        return self.join_once(**options) if answer.error_code == MEMBER_ID_REQUIRED else answer

    def join_later(self, **options: Any) -> "Future[Any]":
        return self._pool.submit(self.join, **options)

    def sync(self, assignments: dict[str, bytes] | None = None) -> Any:
        entries = [SyncGroupRequest.SyncGroupRequestAssignment(member_id=key, assignment=value) for key, value in (assignments or {}).items()]
        request = SyncGroupRequest(
            group_id=self.group, generation_id=self.generation, member_id=self.id, group_instance_id=self.instance_id, assignments=entries
        )
        return self.wire.call(request, 3)

    def sync_later(self) -> "Future[Any]":
        return self._pool.submit(self.sync)

    def heartbeat(self, *, generation: int | None = None) -> int:
        request = HeartbeatRequest(
            group_id=self.group,
            generation_id=self.generation if generation is None else generation,
            member_id=self.id,
            group_instance_id=self.instance_id,
        )
        return int(self.wire.call(request, 3).error_code)

    def leave(self) -> Any:
        identity = LeaveGroupRequest.MemberIdentity(member_id=self.id, group_instance_id=self.instance_id)
        return self.wire.call(LeaveGroupRequest(group_id=self.group, members=[identity]), 3)

    def commit(self, topic: str, offset: int, *, generation: int | None = None, metadata: str = "") -> int:
        topic_class = OffsetCommitRequest.OffsetCommitRequestTopic
        part = topic_class.OffsetCommitRequestPartition(
            partition_index=0, committed_offset=offset, committed_leader_epoch=-1, committed_metadata=metadata
        )
        request = OffsetCommitRequest(
            group_id=self.group,
            generation_id_or_member_epoch=self.generation if generation is None else generation,
            member_id=self.id,
            group_instance_id=self.instance_id,
            topics=[topic_class(name=topic, partitions=[part])],
        )
        return int(self.wire.call(request, 7).topics[0].partitions[0].error_code)

    def committed(self, topic: str | None) -> list[tuple[str, int, int, str]]:
        topics = None if topic is None else [OffsetFetchRequest.OffsetFetchRequestTopic(name=topic, partition_indexes=[0])]
        answer = self.wire.call(OffsetFetchRequest(group_id=self.group, topics=topics, require_stable=False), 7)
        return [(found.name, part.partition_index, part.committed_offset, part.metadata) for found in answer.topics for part in found.partitions]

    def describe(self) -> Any:
        return self.wire.call(DescribeGroupsRequest(groups=[self.group], include_authorized_operations=False), 4).groups[0]


@pytest.fixture
def group(topic_prefix: str) -> str:
    return f"{topic_prefix}-group"


@pytest.fixture
def alice(kafka: KafkaUnderTest, group: str) -> Iterator[GroupMember]:
    member = GroupMember(kafka.bootstrap_servers, group)
    yield member
    member.wire.socket.close()


@pytest.fixture
def patient(kafka: KafkaUnderTest, group: str) -> Iterator[GroupMember]:
    """A member of another group."""
    member = GroupMember(kafka.bootstrap_servers, f"{group}-patient")
    yield member
    member.wire.socket.close()


@pytest.fixture
def bob(kafka: KafkaUnderTest, group: str) -> Iterator[GroupMember]:
    member = GroupMember(kafka.bootstrap_servers, group)
    yield member
    member.wire.socket.close()


def make_stable(alice: GroupMember, bob: GroupMember) -> None:
    """Both are in the group, with assignments of their own."""
    alice.join(session_timeout_ms=10_000)
    alice.sync({alice.id: b"all"})
    joining = bob.join_later()
    eventually(lambda: alice.heartbeat() == REBALANCING, "bob's join starts no rebalance")
    alice.join()
    joining.result(20)
    waiting = bob.sync_later()
    alice.sync({alice.id: b"for alice", bob.id: b"for bob"})
    assert waiting.result(20).assignment == b"for bob"


def test_a_new_member_must_come_back_with_the_id_it_is_given(alice: GroupMember) -> None:
    answer = alice.join_once()
    assert (answer.error_code, bool(answer.member_id)) == (MEMBER_ID_REQUIRED, True)
    answer = alice.join_once()
    assert (answer.error_code, answer.generation_id, answer.leader, answer.protocol_name) == (NONE, 1, alice.id, "range")
    assert [member.member_id for member in answer.members] == [alice.id]


def test_old_clients_join_in_one_step(alice: GroupMember) -> None:
    answer = alice.join_once(version=2)
    assert (answer.error_code, answer.leader) == (NONE, answer.member_id)


def test_the_leader_assigns_and_everyone_gets_their_own_part(alice: GroupMember, bob: GroupMember) -> None:
    make_stable(alice, bob)
    assert alice.generation == bob.generation == 2
    assert alice.heartbeat() == bob.heartbeat() == NONE
    described = alice.describe()
    assert (described.group_state, described.protocol_type, described.protocol_data) == ("Stable", "consumer", "range")
    assert {member.member_id: member.member_assignment for member in described.members} == {alice.id: b"for alice", bob.id: b"for bob"}


def test_leaving_makes_the_others_rebalance(alice: GroupMember, bob: GroupMember) -> None:
    make_stable(alice, bob)
    assert bob.leave().members[0].error_code == NONE
    assert alice.heartbeat() == REBALANCING
    assert bob.heartbeat() == UNKNOWN_MEMBER
    answer = alice.join()
    assert [member.member_id for member in answer.members] == [alice.id]


def test_a_dead_member_is_evicted_when_its_session_is_over_and_not_when_a_longer_one_is(
    alice: GroupMember, bob: GroupMember, patient: GroupMember
) -> None:
    for member, session_timeout_ms in ((patient, 10_000), (bob, 1_000)):
        member.join(session_timeout_ms=session_timeout_ms)
        member.sync({member.id: b""})
    started = time.monotonic()
    eventually(lambda: alice.describe().group_state == "Empty", "the dead member stays")
    assert patient.describe().group_state == "Stable", "it joined before bob"
    assert time.monotonic() - started > 0.8
    assert bob.heartbeat() == UNKNOWN_MEMBER


def test_a_member_that_dies_while_it_waits_does_not_hold_up_the_group(alice: GroupMember, bob: GroupMember) -> None:
    alice.join()
    alice.sync({alice.id: b""})
    bob.join_once(session_timeout_ms=1_000)
    waiting = bob.join_later(session_timeout_ms=1_000)
    eventually(lambda: alice.heartbeat() == REBALANCING, "bob's join starts no rebalance")
    bob.wire.socket.shutdown(socket.SHUT_RDWR)
    assert isinstance(waiting.exception(20), ConnectionError)

    def is_alone() -> bool:
        members = [member.member_id for member in alice.join().members]
        alice.sync({alice.id: b""})
        return members == [alice.id]

    eventually(is_alone, "the dead member stays")
    assert alice.heartbeat() == NONE


def test_wrong_generations_and_members_are_told_so(alice: GroupMember, bob: GroupMember) -> None:
    alice.join()
    alice.sync({alice.id: b""})
    assert alice.heartbeat(generation=99) == ILLEGAL_GENERATION
    bob.id = "someone-else"
    assert bob.heartbeat() == UNKNOWN_MEMBER
    assert bob.join_once().error_code == UNKNOWN_MEMBER
    assert bob.leave().members[0].error_code == UNKNOWN_MEMBER


def test_no_common_protocol_no_entry(alice: GroupMember, bob: GroupMember) -> None:
    alice.join(protocols=("range", "roundrobin"))
    alice.sync({alice.id: b""})
    assert bob.join_once(protocols=("sticky",)).error_code == INCONSISTENT_PROTOCOL
    assert bob.join_once(protocols=()).error_code == INCONSISTENT_PROTOCOL


def test_session_timeouts_and_group_ids_have_limits(alice: GroupMember) -> None:
    assert alice.join_once(session_timeout_ms=10).error_code == BAD_SESSION_TIMEOUT
    assert alice.join_once(session_timeout_ms=10_000_000).error_code == BAD_SESSION_TIMEOUT
    alice.group = ""
    assert alice.join_once().error_code == INVALID_GROUP


def test_a_repeated_join_of_a_follower_changes_nothing(alice: GroupMember, bob: GroupMember) -> None:
    make_stable(alice, bob)
    answer = bob.join_once()
    assert (answer.error_code, answer.generation_id, answer.leader) == (NONE, 2, alice.id)
    assert bob.sync().assignment == b"for bob"
    assert alice.heartbeat() == NONE


def test_a_static_member_that_restarts_keeps_its_assignment_without_a_rebalance(alice: GroupMember, bob: GroupMember) -> None:
    alice.instance_id = bob.instance_id = "worker-1"
    alice.join()
    alice.sync({alice.id: b"mine"})
    answer = bob.join()
    assert (answer.error_code, answer.generation_id) == (NONE, 1)
    assert bob.sync().assignment == b"mine"
    assert alice.heartbeat() == FENCED_INSTANCE
    assert bob.heartbeat() == NONE


def test_commits_come_back_and_only_current_members_may_commit(wire: Wire, alice: GroupMember, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix)
    assert alice.committed(topic_prefix) == [(topic_prefix, 0, -1, "")]
    alice.join()
    alice.sync({alice.id: b""})
    assert alice.commit(topic_prefix, 42, metadata="über 水") == NONE
    assert alice.committed(topic_prefix) == alice.committed(None) == [(topic_prefix, 0, 42, "über 水")]
    assert alice.commit(topic_prefix, 43, generation=99) == ILLEGAL_GENERATION
    assert alice.commit(topic_prefix, 43, generation=-1) in (UNKNOWN_MEMBER, ILLEGAL_GENERATION)
    assert alice.commit(topic_prefix, 43, metadata="x" * 5_000) == METADATA_TOO_LARGE
    assert alice.commit("no-such-topic-here", 1) == UNKNOWN_TOPIC
    assert alice.committed(topic_prefix)[0][2] == 42


def test_a_consumer_without_a_group_membership_may_commit(wire: Wire, alice: GroupMember, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix)
    assert alice.commit(topic_prefix, 7) == NONE
    described = alice.describe()
    assert (described.error_code, described.group_state) == (NONE, "Empty")
    assert alice.commit(topic_prefix, 8, generation=3) in (UNKNOWN_MEMBER, ILLEGAL_GENERATION)


def test_offsets_of_a_deleted_topic_are_gone(wire: Wire, alice: GroupMember, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix)
    assert alice.commit(topic_prefix, 7) == NONE
    wire.delete_topic(topic_prefix)
    eventually(lambda: alice.committed(None) == [], "the offsets of a deleted topic stay")


def test_empty_groups_can_be_deleted_and_others_not(wire: Wire, alice: GroupMember, group: str) -> None:
    def delete() -> int:
        return int(wire.call(DeleteGroupsRequest(groups_names=[group]), 1).results[0].error_code)

    assert delete() == NOT_FOUND
    alice.join()
    alice.sync({alice.id: b""})
    assert delete() == NOT_EMPTY
    alice.leave()
    assert delete() == NONE
    assert alice.describe().group_state == "Dead"


def test_offsets_can_be_deleted_one_by_one(wire: Wire, alice: GroupMember, group: str, topic_prefix: str) -> None:
    wire.create_topic(topic_prefix)
    alice.commit(topic_prefix, 7)
    topic_class = OffsetDeleteRequest.OffsetDeleteRequestTopic
    part = topic_class.OffsetDeleteRequestPartition(partition_index=0)
    answer = wire.call(OffsetDeleteRequest(group_id=group, topics=[topic_class(name=topic_prefix, partitions=[part])]), 0)
    assert (answer.error_code, answer.topics[0].partitions[0].error_code) == (NONE, NONE)
    assert alice.committed(topic_prefix) == [(topic_prefix, 0, -1, "")]


def test_groups_are_listed_by_state(wire: Wire, alice: GroupMember, group: str) -> None:
    def listed(*states: str) -> dict[str, str]:
        answer = wire.call(ListGroupsRequest(states_filter=list(states), types_filter=[]), 4)
        return {found.group_id: found.group_state for found in answer.groups}

    alice.join()
    alice.sync({alice.id: b""})
    assert listed()[group] == listed("Stable")[group] == "Stable"
    assert group not in listed("Empty")
