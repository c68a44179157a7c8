"""Consumer groups without a network: what the timers of a rebalance do."""

import asyncio

import pytest

from ops.broker.codes import ErrorCode, ProtocolError
from ops.broker.groups import Group, GroupState, Member


def member(name: str) -> Member:
    return Member(name, None, name, "/127.0.0.1", session_timeout_s=30.0, rebalance_timeout_s=0.05, protocols={"range": b""})


def test_a_leader_that_never_syncs_is_evicted_and_who_has_synced_stays() -> None:
    async def scenario() -> None:
        group = Group("g")
        leader, *others = [member(name) for name in ("leader", "first", "second", "third")]
        for joining in (leader, *others, leader):
            group.join(joining, "consumer")
        assert (group.state, len(group.members)) == (GroupState.COMPLETING, 4)
        for synced in [group.sync(one, {}) for one in others[1:]]:
            with pytest.raises(ProtocolError) as told:
                await asyncio.wait_for(synced, 10)
            assert told.value.code is ErrorCode.REBALANCE_IN_PROGRESS
        assert set(group.members) == {"second", "third"}
        again = [group.join(one, "consumer") for one in others[1:]]
        assert {(await asyncio.wait_for(joined, 10)).leader_id for joined in again} == {"second"}

    asyncio.run(scenario())
