"""The waiting of a fetch, without a network: no append may be missed, whenever it happens."""

import asyncio
from pathlib import Path
from typing import Any

from ops.broker.batch import check_produced
from ops.broker.dispatch import Peer, RequestContext
from ops.broker.fetch import FetchApi
from ops.broker.topics import Catalogue
from ops.broker.versions import ApiKey
from schemas.settings import BrokerSettings
from tests.contract.wire import Wire, batch

CONTEXT = RequestContext(ApiKey.FETCH, 11, 1, "test", Peer("127.0.0.1", "127.0.0.1", 9092))
WAKE_WITHIN_S = 10.0


def fetch_while(tmp_path: Path, change: Any, turns: int) -> bytes:
    """Start a fetch that would wait a minute, let it have some turns of the event loop, change the topic, and return the answer."""
    catalogue = Catalogue(tmp_path, BrokerSettings())
    catalogue.create("t", 1, {})

    async def scenario() -> bytes:
        answer = asyncio.ensure_future(FetchApi(catalogue).fetch(CONTEXT, Wire.fetch_request("t", 0, max_wait_ms=60_000)))
        for _ in range(turns):
            await asyncio.sleep(0)
        change(catalogue)
        return b"".join(await asyncio.wait_for(answer, WAKE_WITHIN_S))

    return asyncio.run(scenario())


def append(catalogue: Catalogue) -> None:
    sent = batch([b"wake up"])
    catalogue.partition("t", None, 0).append(sent, check_produced(sent, 9), 10**6)


def delete(catalogue: Catalogue) -> None:
    catalogue.delete(catalogue.resolve("t", None))


def test_an_append_before_the_wait_begins_is_not_missed(tmp_path: Path) -> None:
    assert b"wake up" in fetch_while(tmp_path, append, turns=0)


def test_an_append_during_the_wait_ends_it(tmp_path: Path) -> None:
    assert b"wake up" in fetch_while(tmp_path, append, turns=3)


def test_deleting_the_topic_ends_the_wait_whenever_it_happens(tmp_path: Path) -> None:
    for turns in (0, 3):
        unknown_topic = (3).to_bytes(2, "big")
        assert unknown_topic in fetch_while(tmp_path / str(turns), delete, turns=turns)


def test_a_fetch_that_ends_at_its_segment_does_not_wait_while_newer_segments_follow(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path, BrokerSettings())
    catalogue.create("t", 1, {})
    sent = batch([b"x" * 500])
    for _ in range(3):
        catalogue.partition("t", None, 0).append(sent, check_produced(sent, 9), segment_bytes=len(sent))
    far_behind, at_the_end = (Wire.fetch_request("t", offset, max_wait_ms=60_000, min_bytes=10_000) for offset in (0, 2))
    assert isinstance(FetchApi(catalogue).fetch(CONTEXT, far_behind), list)
    waiting = FetchApi(catalogue).fetch(CONTEXT, at_the_end)
    assert asyncio.iscoroutine(waiting)
    waiting.close()
