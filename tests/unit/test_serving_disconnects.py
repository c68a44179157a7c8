"""Clients that go away: whatever is being done for them stops, also where it is their own slowness that it waits for."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request

from ray_apps.serving.dispatch import Answer
from ray_apps.serving.engine.interface import Chunk, Engine
from ray_apps.serving.engine.torch_engine import TorchEngine
from ray_apps.serving.gateway import unless_gone
from schemas.settings import ServingSettings
from tests.model_factory import make_model
from tests.serving_harness import EventList, publish_state, ready, running_gateway, until

LONG = {"model": "headrace", "max_tokens": 500, "prompt": ["x"] * 4, "temperature": 1, "seed": 5}
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Engine]]:
    root = tmp_path_factory.mktemp("models")
    make_model(root, version=1, seed=1, context=1024)
    engine = TorchEngine(root / "models" / f"{1:08d}", ServingSettings(max_concurrent_sequences=4, max_queued_requests=8))
    yield {1: engine}
    engine.close()


async def test_a_client_that_goes_away_cancels_its_generation(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    async with running_gateway(tmp_path, engines, sink=sink) as client:
        await until(lambda: ready(client))
        for body in (LONG, LONG | {"stream": True}):
            task = asyncio.create_task(client.post("/v1/completions", json=body))
            await until(lambda: engines[1].stats().num_running == 4)
            task.cancel()
            await asyncio.wait([task])
            await until(lambda: engines[1].stats().num_running == 0)
        await until(lambda: [data.finish_reason for data in sink.data] == ["cancelled"] * 2)


async def test_a_client_that_goes_away_while_it_is_sent_to_cancels_its_generation(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    sink, asked = EventList(), [{"type": "http.request", "body": json.dumps(LONG | {"stream": True}).encode()}]
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/completions", "headers": headers}
    is_full, never = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not asked:
            await never.wait()
        return asked.pop()

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            is_full.set()
            await never.wait()

    async with running_gateway(tmp_path, engines, sink=sink) as client:
        await until(lambda: ready(client))
        app = client._transport.app  # type: ignore[attr-defined]
        task = asyncio.create_task(app(scope | {"query_string": b"", "raw_path": b"/v1/completions", "root_path": ""}, receive, send))
        await is_full.wait()
        task.cancel()
        await asyncio.wait([task])
        assert [data.finish_reason for data in sink.data] == ["cancelled"]


@pytest.mark.parametrize("num_turns", range(1, 9))
async def test_an_answer_that_begins_in_the_moment_in_which_its_request_is_cancelled_is_closed(num_turns: int) -> None:
    """``num_turns`` of the event loop later: while the work runs, when it is done and nobody has seen that, and after."""
    begun: list[Answer] = []
    closed: list[Answer] = []

    class Begun(Answer):
        async def aclose(self) -> None:
            closed.append(self)

    async def nothing() -> AsyncGenerator[tuple[Chunk, ...], None]:
        yield ()

    async def begin() -> Answer:
        await asyncio.sleep(0)
        begun.append(Begun(1, "champion", [], nothing()))
        return begun[0]

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(unless_gone(Request({"type": "http"}, receive), begin()))
    for _ in range(num_turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert closed == begun if task.cancelled() else [task.result()] == begun
