"""Consumer groups: who is in, who leads, which generation; the classic rebalance protocol.

    Empty --join--> PreparingRebalance --all joined or time is up--> CompletingRebalance --leader's assignment--> Stable
    any member joins, leaves or dies: back to PreparingRebalance; the last one gone: Empty

A member that is not heard of for its session time-out is evicted. A join or sync that waits is a future; it is answered by whichever request
(or timer) completes the phase. Membership is not stored: after a restart the members join again, and the offsets are still there.
Source: https://kafka.apache.org/protocol, KIP-394 (member id required), KIP-345 (static members).
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, TypeVar

from ops.broker.codes import ErrorCode, ProtocolError

_T = TypeVar("_T")


class GroupState(StrEnum):
    """Names as DescribeGroups shows them."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


class Joined(NamedTuple):
    """Answer to a join. ``members`` (id -> instance id and metadata) is filled for the leader only."""

    generation: int
    protocol: str
    leader_id: str
    member_id: str
    members: Mapping[str, "Member"]


@dataclass
class Member:
    """One member, as it described itself."""

    id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_s: float
    rebalance_timeout_s: float
    protocols: dict[str, bytes]
    """Assignors in the order of the member's preference, each with the member's subscription."""
    assignment: bytes = b""
    join: "asyncio.Future[Joined] | None" = None
    sync: "asyncio.Future[bytes] | None" = None
    timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a request of this member is being held by us: it is alive, whatever the clock says."""
        return any(future is not None and not future.done() for future in (self.join, self.sync))

    def fail(self, code: ErrorCode) -> None:
        """Answer whatever the member waits for with an error."""
        for future in (self.join, self.sync):
            if future is not None and not future.done():
                future.set_exception(ProtocolError(code))
        self.join = self.sync = None


@dataclass
class Group:
    """One consumer group."""

    id: str
    state: GroupState = GroupState.EMPTY
    generation: int = 0
    protocol_type: str = ""
    protocol: str = ""
    leader_id: str = ""
    members: dict[str, Member] = field(default_factory=dict)
    pending: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    """Ids handed out to members that have not come back with them yet."""
    _phase_timer: asyncio.TimerHandle | None = None

    def new_member_id(self, client_id: str, session_timeout_s: float) -> str:
        """An id that the client has to come back with (KIP-394), so that lost answers leave no ghosts."""
        member_id = make_member_id(client_id)
        loop = asyncio.get_running_loop()
        self.pending[member_id] = loop.call_later(session_timeout_s, self._drop_pending, member_id)
        return member_id

    def _drop_pending(self, member_id: str) -> None:
        timer = self.pending.pop(member_id, None)
        if timer is not None:
            timer.cancel()
        self._complete_join_if_all_here()

    def check_protocols(self, protocol_type: str, protocols: Mapping[str, bytes]) -> None:
        """Raise INCONSISTENT_GROUP_PROTOCOL unless the group can work with one of these assignors."""
        fits = protocol_type == self.protocol_type and any(self._is_common(name) for name in protocols)
        if not protocol_type or not protocols or (self.members and not fits):
            raise ProtocolError(ErrorCode.INCONSISTENT_GROUP_PROTOCOL)

    def _is_common(self, protocol: str) -> bool:
        return all(protocol in member.protocols for member in self.members.values())

    def join(self, newcomer: Member, protocol_type: str) -> "asyncio.Future[Joined]":
        """Take a member in, or take note that it has come back; the future is done when the group has a new generation."""
        known = self._known(newcomer)
        if known is not None and self._may_stay(known, newcomer):
            leader_id = self.leader_id  # before it is replaced: a leader that restarts must not assign again
            self._replace(known, newcomer)
            return _done(self._answer_of(newcomer, leader_id=leader_id))
        if known is not None:
            self._replace(known, newcomer)
        self._cancel_pending(newcomer.id)
        self.protocol_type = protocol_type
        self.members[newcomer.id] = newcomer
        self.leader_id = self.leader_id or newcomer.id
        waiting = newcomer.join = asyncio.get_running_loop().create_future()
        self.heard_of(newcomer)
        self._prepare()
        return waiting

    def _known(self, newcomer: Member) -> Member | None:
        if newcomer.id in self.members:
            return self.members[newcomer.id]
        instance = newcomer.instance_id
        return next((member for member in self.members.values() if instance and member.instance_id == instance), None)

    def _may_stay(self, known: Member, newcomer: Member) -> bool:
        """Whether a join changes nothing: a lost answer is asked for again, or a static member restarts with the same subscription."""
        if known.protocols != newcomer.protocols:
            return False
        is_restart = known.id != newcomer.id
        if self.state is GroupState.STABLE:
            return is_restart or newcomer.id != self.leader_id
        return self.state is GroupState.COMPLETING and not is_restart

    def _replace(self, known: Member, newcomer: Member) -> None:
        if known.timer is not None:
            known.timer.cancel()
        known.fail(ErrorCode.FENCED_INSTANCE_ID if known.id != newcomer.id else ErrorCode.UNKNOWN_MEMBER_ID)
        newcomer.assignment = known.assignment
        self.leader_id = newcomer.id if self.leader_id == known.id else self.leader_id
        del self.members[known.id]
        self.members[newcomer.id] = newcomer
        self.heard_of(newcomer)

    def _cancel_pending(self, member_id: str) -> None:
        timer = self.pending.pop(member_id, None)
        if timer is not None:
            timer.cancel()

    def _prepare(self) -> None:
        """Begin a rebalance, or go on with the one that runs."""
        if self.state is not GroupState.PREPARING:
            self.state = GroupState.PREPARING
            for member in self.members.values():
                if member.sync is not None and not member.sync.done():
                    member.sync.set_exception(ProtocolError(ErrorCode.REBALANCE_IN_PROGRESS))
                member.sync = None
            self._set_phase_timer(self._complete_join)
        self._complete_join_if_all_here()

    def _set_phase_timer(self, when_over: Callable[[], None] | None) -> None:
        if self._phase_timer is not None:
            self._phase_timer.cancel()
        self._phase_timer = None
        if when_over is not None and self.members:
            longest_s = max(member.rebalance_timeout_s for member in self.members.values())
            self._phase_timer = asyncio.get_running_loop().call_later(longest_s, when_over)

    def _complete_join_if_all_here(self) -> None:
        all_here = all(member.is_waiting for member in self.members.values())
        if self.state is GroupState.PREPARING and all_here and not self.pending:
            self._complete_join()

    def _complete_join(self) -> None:
        """End the joining: members that have not joined are removed; the others are the new generation."""
        for member in [member for member in self.members.values() if not member.is_waiting]:
            self._forget(member)
        self.generation += 1
        if not self.members:
            self.state, self.protocol, self.leader_id = GroupState.EMPTY, "", ""
            self._set_phase_timer(None)
            return
        self.state = GroupState.COMPLETING
        self.protocol = self._vote()
        self._set_phase_timer(self._drop_unsynced)
        for member in self.members.values():
            assert member.join is not None
            joining, member.join = member.join, None
            self.heard_of(member)
            joining.set_result(self._answer_of(member, leader_id=self.leader_id))

    def _vote(self) -> str:
        """The assignor that all members have and most prefer."""
        votes = Counter(next(name for name in member.protocols if self._is_common(name)) for member in self.members.values())
        return votes.most_common(1)[0][0]

    def _answer_of(self, member: Member, *, leader_id: str) -> Joined:
        members = dict(self.members) if member.id == leader_id and self.state is GroupState.COMPLETING else {}
        return Joined(self.generation, self.protocol, leader_id, member.id, members)

    def _drop_unsynced(self) -> None:
        """The leader, or others, never asked for the assignment: they are gone. Those who asked stay and rebalance."""
        unsynced = [member for member in self.members.values() if member.sync is None]  # all of them first: a rebalance takes back who has synced
        for member in unsynced:
            self._forget(member)
        self._prepare()

    def sync(self, member: Member, assignments: Mapping[str, bytes]) -> "asyncio.Future[bytes]":
        """The member's assignment, as soon as the leader has handed them in."""
        self.heard_of(member)
        if self.state is GroupState.PREPARING:
            raise ProtocolError(ErrorCode.REBALANCE_IN_PROGRESS)
        if self.state is GroupState.STABLE:
            return _done(member.assignment)
        member.sync = asyncio.get_running_loop().create_future()
        if member.id == self.leader_id:
            self._assign(assignments)
        return member.sync

    def _assign(self, assignments: Mapping[str, bytes]) -> None:
        self.state = GroupState.STABLE
        self._set_phase_timer(None)
        for member in self.members.values():
            member.assignment = assignments.get(member.id, b"")
            if member.sync is not None and not member.sync.done():
                member.sync.set_result(member.assignment)
            self.heard_of(member)

    def member(self, member_id: str, instance_id: str | None, generation: int | None) -> Member:
        """The member that says who it is. Raises UNKNOWN_MEMBER_ID, FENCED_INSTANCE_ID or ILLEGAL_GENERATION."""
        static = next((known for known in self.members.values() if instance_id and known.instance_id == instance_id), None)
        if static is not None and static.id != member_id:
            raise ProtocolError(ErrorCode.FENCED_INSTANCE_ID)
        found = self.members.get(member_id)
        if found is None:
            raise ProtocolError(ErrorCode.UNKNOWN_MEMBER_ID)
        if generation is not None and generation != self.generation:
            raise ProtocolError(ErrorCode.ILLEGAL_GENERATION)
        return found

    def heard_of(self, member: Member) -> None:
        """Start the member's session time anew."""
        if member.timer is not None:
            member.timer.cancel()
        member.timer = asyncio.get_running_loop().call_later(member.session_timeout_s, self._expire, member)

    def _expire(self, member: Member) -> None:
        if member.is_waiting:
            self.heard_of(member)
        else:
            self.remove(member)

    def leave(self, member_id: str, instance_id: str | None) -> None:
        """A member says goodbye. Raises UNKNOWN_MEMBER_ID or FENCED_INSTANCE_ID."""
        if member_id in self.pending:
            self._drop_pending(member_id)
            return
        static = next((known for known in self.members.values() if instance_id and known.instance_id == instance_id), None)
        self.remove(static if static is not None and not member_id else self.member(member_id, instance_id, None))

    def remove(self, member: Member) -> None:
        """Take a member out and let the others rebalance."""
        if self.members.get(member.id) is not member:
            return
        self._forget(member)
        if self.state is not GroupState.EMPTY:
            self._prepare()

    def _forget(self, member: Member) -> None:
        member.fail(ErrorCode.UNKNOWN_MEMBER_ID)
        if member.timer is not None:
            member.timer.cancel()
        del self.members[member.id]
        if self.leader_id == member.id:
            self.leader_id = next(iter(self.members), "")


def make_member_id(client_id: str) -> str:
    """A member id that no one else has."""
    return f"{client_id}-{uuid.uuid4()}"


def _done(value: _T) -> "asyncio.Future[_T]":
    future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future
