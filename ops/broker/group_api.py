"""Handlers of the group requests: from the wire to ``groups.Group`` and back."""

from collections.abc import Awaitable
from typing import Any

from kafka.protocol.admin import DeleteGroupsResponse, DescribeGroupsResponse, ListGroupsResponse
from kafka.protocol.consumer import HeartbeatResponse, JoinGroupResponse, LeaveGroupResponse, SyncGroupResponse

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.dispatch import Body, RequestContext
from ops.broker.groups import Group, GroupState, Joined, Member, make_member_id
from ops.broker.offsets import OffsetStore
from schemas.settings import BrokerSettings

MAX_SESSION_TIMEOUT_MS = 1_800_000
CLASSIC = "classic"


class Groups:
    """All groups: those with members, and those that only have committed offsets."""

    def __init__(self, settings: BrokerSettings, offsets: OffsetStore) -> None:
        self.settings = settings
        self.offsets = offsets
        self._groups: dict[str, Group] = {}

    def find(self, group_id: str) -> Group | None:
        """The group, if anyone has ever joined it or committed for it."""
        if group_id not in self._groups and self.offsets.of(group_id):
            self._groups[group_id] = Group(group_id)
        return self._groups.get(group_id)

    def get(self, group_id: str) -> Group:
        """The group that a member belongs to. Raises UNKNOWN_MEMBER_ID if there is none, as for a member of a group that was lost."""
        group = self.find(check_group_id(group_id))
        if group is None:
            raise ProtocolError(ErrorCode.UNKNOWN_MEMBER_ID)
        return group

    def get_or_create(self, group_id: str) -> Group:
        """The group, made if need be."""
        return self.find(group_id) or self._groups.setdefault(group_id, Group(group_id))

    def all(self) -> list[Group]:
        """Every group."""
        for group_id in self.offsets.groups():
            self.find(group_id)
        return list(self._groups.values())

    def delete(self, group_id: str) -> None:
        """Remove an empty group and its offsets. Raises GROUP_ID_NOT_FOUND or NON_EMPTY_GROUP."""
        group = self.find(group_id)
        if group is None:
            raise ProtocolError(ErrorCode.GROUP_ID_NOT_FOUND)
        if group.members:
            raise ProtocolError(ErrorCode.NON_EMPTY_GROUP)
        self.offsets.delete_group(group_id)
        del self._groups[group_id]


def check_group_id(group_id: str) -> str:
    """The id, unless it is empty: members need a group with a name."""
    if not group_id:
        raise ProtocolError(ErrorCode.INVALID_GROUP_ID)
    return group_id


class GroupApi:
    """Handlers for members and for those who look at groups."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def join(self, context: RequestContext, request: Any) -> Body | Awaitable[Body]:
        """Join or rejoin; the answer waits until the rebalance is complete."""
        check_group_id(request.group_id)
        lowest_ms = self._groups.settings.min_session_timeout_ms
        if not lowest_ms <= request.session_timeout_ms <= MAX_SESSION_TIMEOUT_MS:
            raise ProtocolError(
                ErrorCode.INVALID_SESSION_TIMEOUT,
                f"session timeout {request.session_timeout_ms} ms is outside [{lowest_ms}, {MAX_SESSION_TIMEOUT_MS}]",
            )
        return self._join(context, request)

    async def _join(self, context: RequestContext, request: Any) -> Body:
        member_id = request.member_id
        try:
            group = self._group_to_join(request)
            group.check_protocols(request.protocol_type, {protocol.name: protocol.metadata for protocol in request.protocols})
            if not member_id and request.group_instance_id is None and context.version >= 4:
                member_id = group.new_member_id(context.client_id, request.session_timeout_ms / 1000)
                raise ProtocolError(ErrorCode.MEMBER_ID_REQUIRED)
            joined = await group.join(_member(context, request), request.protocol_type)
        except ProtocolError as error:
            return _join_refused(error.code, member_id)
        return _join_answer(request, joined)

    def _group_to_join(self, request: Any) -> Group:
        if not request.member_id:
            return self._groups.get_or_create(request.group_id)
        group = self._groups.get(request.group_id)
        if request.member_id not in group.pending:
            group.member(request.member_id, request.group_instance_id, None)
        return group

    def sync(self, context: RequestContext, request: Any) -> Awaitable[Body]:
        """Hand in assignments (the leader) and get one's own; the answer waits for the leader."""
        return self._sync(context, request)

    async def _sync(self, _context: RequestContext, request: Any) -> Body:
        group = self._groups.get(request.group_id)
        member = group.member(request.member_id, request.group_instance_id, request.generation_id)
        named = (request.protocol_type, group.protocol_type), (request.protocol_name, group.protocol)
        if any(said is not None and said != known for said, known in named):
            raise ProtocolError(ErrorCode.INCONSISTENT_GROUP_PROTOCOL)
        assignment = await group.sync(member, {entry.member_id: entry.assignment for entry in request.assignments})
        return SyncGroupResponse(
            throttle_time_ms=0, error_code=0, protocol_type=group.protocol_type, protocol_name=group.protocol, assignment=assignment
        )

    def heartbeat(self, _context: RequestContext, request: Any) -> Body:
        """Note that the member lives; REBALANCE_IN_PROGRESS tells it to join again."""
        group = self._groups.get(request.group_id)
        member = group.member(request.member_id, request.group_instance_id, request.generation_id)
        group.heard_of(member)
        code = ErrorCode.REBALANCE_IN_PROGRESS if group.state is GroupState.PREPARING else ErrorCode.NONE
        return HeartbeatResponse(throttle_time_ms=0, error_code=int(code))

    def leave(self, context: RequestContext, request: Any) -> Body:
        """One member (before version 3) or several leave."""
        group = self._groups.get(request.group_id)
        if context.version < 3:
            group.leave(request.member_id, None)
            return LeaveGroupResponse(throttle_time_ms=0, error_code=0)
        left = [_leave(group, identity) for identity in request.members]
        return LeaveGroupResponse(throttle_time_ms=0, error_code=0, members=left)

    def describe(self, context: RequestContext, request: Any) -> Body:
        """State, members and assignments."""
        return DescribeGroupsResponse(throttle_time_ms=0, groups=[self._describe(context, group_id) for group_id in request.groups])

    def _describe(self, context: RequestContext, group_id: str) -> Any:
        group = self._groups.find(group_id)
        if group is None:
            code = ErrorCode.GROUP_ID_NOT_FOUND if context.version >= 6 else ErrorCode.NONE
            group, message = Group(group_id, state=GroupState.DEAD), f"Group {group_id} not found." if context.version >= 6 else None
        else:
            code, message = ErrorCode.NONE, None
        return DescribeGroupsResponse.DescribedGroup(
            error_code=int(code),
            error_message=message,
            group_id=group_id,
            group_state=str(group.state),
            protocol_type=group.protocol_type,
            protocol_data=group.protocol if group.state is GroupState.STABLE else "",
            members=[_describe_member(group, member) for member in group.members.values()],
        )

    def list(self, _context: RequestContext, request: Any) -> Body:
        """All groups, or those in certain states or of certain types."""
        states = {state.lower() for state in request.states_filter or ()}
        types = {kind.lower() for kind in request.types_filter or ()}
        groups = [group for group in self._groups.all() if not states or group.state.lower() in states] if not types or CLASSIC in types else []
        listed = [
            ListGroupsResponse.ListedGroup(group_id=group.id, protocol_type=group.protocol_type, group_state=str(group.state), group_type=CLASSIC)
            for group in groups
        ]
        return ListGroupsResponse(throttle_time_ms=0, error_code=0, groups=listed)

    def delete(self, _context: RequestContext, request: Any) -> Body:
        """Remove empty groups."""
        return DeleteGroupsResponse(throttle_time_ms=0, results=[self._delete(group_id) for group_id in request.groups_names])

    def _delete(self, group_id: str) -> Any:
        code = ErrorCode.NONE
        try:
            self._groups.delete(group_id)
        except ProtocolError as error:
            code = error.code
        return DeleteGroupsResponse.DeletableGroupResult(group_id=group_id, error_code=int(code))


def _member(context: RequestContext, request: Any) -> Member:
    rebalance_timeout_ms = request.rebalance_timeout_ms if context.version >= 1 else request.session_timeout_ms
    return Member(
        id=request.member_id or make_member_id(context.client_id),
        instance_id=request.group_instance_id,
        client_id=context.client_id,
        client_host=f"/{context.peer.host}",
        session_timeout_s=request.session_timeout_ms / 1000,
        rebalance_timeout_s=rebalance_timeout_ms / 1000,
        protocols={protocol.name: protocol.metadata for protocol in request.protocols},
    )


def _join_refused(code: ErrorCode, member_id: str) -> Body:
    return JoinGroupResponse(
        throttle_time_ms=0, error_code=int(code), generation_id=-1, protocol_type=None, protocol_name="", leader="", member_id=member_id, members=[]
    )


def _join_answer(request: Any, joined: Joined) -> Body:
    members = [
        JoinGroupResponse.JoinGroupResponseMember(
            member_id=member.id, group_instance_id=member.instance_id, metadata=member.protocols[joined.protocol]
        )
        for member in joined.members.values()
    ]
    return JoinGroupResponse(
        throttle_time_ms=0,
        error_code=0,
        generation_id=joined.generation,
        protocol_type=request.protocol_type,
        protocol_name=joined.protocol,
        leader=joined.leader_id,
        skip_assignment=False,
        member_id=joined.member_id,
        members=members,
    )


def _leave(group: Group, identity: Any) -> Any:
    code = ErrorCode.NONE
    try:
        group.leave(identity.member_id, identity.group_instance_id)
    except ProtocolError as error:
        code = error.code
    return LeaveGroupResponse.MemberResponse(member_id=identity.member_id, group_instance_id=identity.group_instance_id, error_code=int(code))


def _describe_member(group: Group, member: Member) -> Any:
    is_stable = group.state is GroupState.STABLE
    return DescribeGroupsResponse.DescribedGroup.DescribedGroupMember(
        member_id=member.id,
        group_instance_id=member.instance_id,
        client_id=member.client_id,
        client_host=member.client_host,
        member_metadata=member.protocols.get(group.protocol, b"") if is_stable else b"",
        member_assignment=member.assignment if is_stable else b"",
    )
