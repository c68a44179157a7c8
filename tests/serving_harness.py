"""A real engine and a real gateway in one process, reached over ASGI with httpx."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from pipelines.storage.commit_log import CommitLog
from ray_apps.serving.engine.interface import Engine, EngineHealth, EngineStats, GenerationRequest, Sampling
from ray_apps.serving.engine_pool import LocalEngines
from ray_apps.serving.following import RolloutFollower
from ray_apps.serving.gateway import build_gateway
from schemas.events import Event, InferenceCompleted
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import ServingSettings


class IdleEngine:
    """All of an engine but its answers: it is well, and has nothing to do."""

    def cancel(self, request_id: str) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(num_running=0, num_waiting=0, num_slots=0, prompt_tokens=0, completion_tokens=0)

    def health(self) -> EngineHealth:
        return EngineHealth(ok=True)

    def close(self) -> None: ...


class EventList:
    """Keeps events, as a producer's queue would."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def publish(self, event: Event, *, topic: str, key: str | None) -> None:
        assert topic == "inference"
        self.events.append(event)

    @property
    def data(self) -> list[InferenceCompleted]:
        return [event.data for event in self.events if isinstance(event.data, InferenceCompleted)]


def publish_state(
    root: Path, *, champion: int | None, challenger: int | None = None, canary_fraction: float = 0.0, shadow_fraction: float = 0.0
) -> RolloutState:
    """Put a rollout state in force under ``root``."""
    log = CommitLog(root / "rollout")
    number = log.latest() + 1
    phase = Phase.IDLE if challenger is None else Phase.CANARY if canary_fraction else Phase.SHADOW
    state = RolloutState(
        number=number,
        created_at=datetime.now(UTC),
        phase=phase,
        champion=champion,
        challenger=challenger,
        canary_fraction=canary_fraction,
        shadow_fraction=shadow_fraction,
        salt="0badcafe",
        decision=Decision.SET,
        reason="a test says so",
    )
    log.publish(number, state.model_dump_json().encode())
    return state


@asynccontextmanager
async def running_gateway(
    root: Path, engines: dict[int, Engine], *, settings: ServingSettings | None = None, sink: EventList | None = None, key: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that follows ``root``; both end with the block."""
    app = build_gateway(settings or ServingSettings(), LocalEngines(engines), RolloutFollower(root), sink=sink, poll_interval_s=0.02)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Start up and shut down an ASGI application, as a server does."""
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
        await task


async def until(condition: Any, timeout_s: float = 60.0) -> None:
    """Wait until ``condition()`` holds; a coroutine function is awaited."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if await value if asyncio.iscoroutine(value) else value:
                return
            await asyncio.sleep(0.01)


async def ready(client: httpx.AsyncClient) -> bool:
    """Whether a champion answers."""
    return (await client.get("/health")).status_code == 200


async def generate(engine: Engine, request: GenerationRequest) -> tuple[list[str], list[list[int]], list[str | None]]:
    """Texts, token ids and finish reasons of all sequences of a request."""
    texts: dict[int, str] = {}
    ids: dict[int, list[int]] = {}
    ends: dict[int, str | None] = {}
    async for events in engine.submit(request):
        assert isinstance(events, tuple), events
        for chunk in events:
            texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
            ids.setdefault(chunk.index, []).extend(chunk.token_ids)
            ends[chunk.index] = chunk.finish_reason
    order = sorted(texts)
    return [texts[i] for i in order], [ids[i] for i in order], [ends[i] for i in order]


def ask(id: str, *prompts: str, **sampling: Any) -> GenerationRequest:
    """A request; greedy unless told otherwise."""
    num_choices = sampling.pop("num_choices", 1)
    return GenerationRequest(id=id, prompts=prompts, num_choices=num_choices, sampling=Sampling(**{"temperature": 0.0, "max_tokens": 24} | sampling))
