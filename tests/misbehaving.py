"""Engines that misbehave, each in the way that its name says, and functions that read the gateway's answers as a client does."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ray_apps.serving.engine.interface import Chunk, Engine, Events, Failure, FinishReason, GenerationRequest
from ray_apps.serving.engine.torch_engine import TorchEngine
from ray_apps.serving.engine_pool import unavailable
from schemas.settings import ServingSettings
from tests.model_factory import make_model
from tests.serving_harness import IdleEngine

ASK = {"model": "headrace", "prompt": "水渠", "max_tokens": 8, "temperature": 0}
LONG = ASK | {"max_tokens": 500, "prompt": ["x"] * 4, "temperature": 1, "seed": 5}
SETTINGS = ServingSettings(max_concurrent_sequences=4, max_queued_requests=8)


@contextmanager
def two_engines(root: Path) -> Iterator[dict[int, Engine]]:
    """Real engines of two small models, by version."""
    make_model(root, version=1, seed=1, context=1024)
    make_model(root, version=2, seed=2, context=1024)
    engines: dict[int, Engine] = {version: TorchEngine(root / "models" / f"{version:08d}", SETTINGS) for version in (1, 2)}
    yield engines
    for engine in engines.values():
        engine.close()


class Misbehaving(IdleEngine):
    """An engine that begins no answer; the subclasses say what it does instead."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.cancelled = 0

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        self.requests.append(request)
        try:
            async for events in self.misbehave(request):
                yield events
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        await asyncio.Event().wait()
        yield ()


class Stuck(Misbehaving):
    """Never answers."""


class Dead(Misbehaving):
    """Disappears before it answers, as a killed replica does."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        raise unavailable("killed")
        yield ()


class DiesMidway(Misbehaving):
    """Disappears after the first token."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        raise unavailable("killed")


class BuggyMidway(Misbehaving):
    """Raises an unexpected error after the first token."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        raise ZeroDivisionError("a bug")


class StopsMidway(Misbehaving):
    """Ends the stream after the first token, without an end event."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)


class GivesUp(Misbehaving):
    """Says that the request was cancelled, although a client waits for the answer."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        yield (Chunk(index=0, prompt_tokens=1, finish_reason=FinishReason.CANCELLED),)


class Failing(Misbehaving):
    """Says that it failed."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield Failure(status=500, message="bad step", type="server_error", code="engine_failed")


class Buggy(Misbehaving):
    """Raises an unexpected error."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        raise ZeroDivisionError("a bug")
        yield ()


def events_of(response: httpx.Response) -> list[Any]:
    data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [json.loads(item) for item in data if item != "[DONE]"]


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error


async def health_says(client: httpx.AsyncClient, words: str) -> bool:
    return words in (await client.get("/health")).json().get("missing", "")
