"""Engines that fail, hang, break off or are closed: what the client gets, what health says, and who answers in their place."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ray_apps.serving import pulse
from ray_apps.serving.answers import Form, events
from ray_apps.serving.engine.interface import Chunk, Engine, EngineHealth, Events, FinishReason, GenerationRequest
from ray_apps.serving.engine.torch_engine import TorchEngine
from ray_apps.serving.engine_pool import LocalEngines
from schemas.settings import ServingSettings
from tests.misbehaving import (
    ASK,
    LONG,
    SETTINGS,
    Buggy,
    BuggyMidway,
    Dead,
    DiesMidway,
    Failing,
    GivesUp,
    Misbehaving,
    StopsMidway,
    Stuck,
    error_of,
    events_of,
    health_says,
    two_engines,
)
from tests.model_factory import make_model
from tests.serving_harness import EventList, publish_state, ready, running_gateway, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Engine]]:
    with two_engines(tmp_path_factory.mktemp("models")) as made:
        yield made


class Sick(Misbehaving):
    """Answers, but says that it fails; or says nothing at all."""

    def __init__(self, words: str | None) -> None:
        super().__init__()
        self._words = words

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        for failed in (False, True):
            if failed and request.num_choices > 1:
                raise ZeroDivisionError("a bug")
            yield (Chunk(index=0, text="x", token_ids=(5,), prompt_tokens=1, finish_reason=FinishReason.STOP if failed else None),)

    def health(self) -> EngineHealth:
        return EngineHealth(ok=False, reason=self._words or "")


async def test_health_is_what_the_champion_does_and_says_and_not_that_it_exists(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, {1: Sick("the last 7 steps failed")}) as client:
        await until(lambda: health_says(client, "the last 7 steps failed"))
        response = await client.get("/health")
        assert (response.status_code, response.json()["status"], response.headers["retry-after"]) == (503, "unavailable", "1")
        assert response.json()["error"]["code"] == "unavailable" and response.json()["champion"] == 1
        assert (await client.post("/v1/completions", json=ASK)).status_code == 200
        assert await ready(client), "it has just answered a client"
        assert (await client.post("/v1/completions", json=ASK | {"n": 2})).status_code == 500
        assert not await ready(client), "it has just failed"


class Unresponsive(LocalEngines):
    """Engines in a process that is stopped: they are there, and never say anything."""

    async def health(self, version: int) -> EngineHealth:
        await asyncio.Event().wait()
        raise AssertionError


async def test_an_engine_that_says_nothing_is_not_healthy_and_many_questions_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "PROBE_TIMEOUT_S", 0.05)
    engines = pulse.Pulse(Unresponsive({1: Stuck()}))
    answers = await asyncio.gather(*(engines.health(1) for _ in range(100)))
    assert {(answer.ok, answer.reason) for answer in answers} == {(False, "it does not answer within 0.05 s")}


async def test_an_answer_that_takes_too_long_is_a_504_and_an_error_of_the_model(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    stuck, sink = Stuck(), EventList()
    async with running_gateway(tmp_path, {1: stuck}, settings=ServingSettings(request_timeout_s=0.1), sink=sink) as client:
        await until(lambda: ready(client))
        response = await client.post("/v1/completions", json=ASK)
        assert (response.status_code, error_of(response)["code"]) == (504, "timeout")
        assert stuck.cancelled == 1
        assert [(data.status, data.error_code) for data in sink.data] == [("error", "timeout")]


@pytest.mark.parametrize(
    ("engine", "status", "code"), [(Failing(), 500, "engine_failed"), (Dead(), 503, "engine_unavailable"), (Buggy(), 500, "internal_error")]
)
async def test_a_champion_that_fails_is_a_proper_5xx(tmp_path: Path, engine: Engine, status: int, code: str) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, {1: engine}) as client:
        await until(lambda: ready(client))
        for body in (ASK, ASK | {"stream": True}):
            response = await client.post("/v1/completions", json=body)
            assert (response.status_code, error_of(response)["code"]) == (status, code)


@pytest.mark.parametrize(
    ("engine", "status", "code"),
    [
        (DiesMidway(), 503, "engine_unavailable"),
        (StopsMidway(), 503, "engine_unavailable"),
        (GivesUp(), 503, "engine_unavailable"),
        (BuggyMidway(), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_an_answer_that_breaks_is_an_error_and_never_has_a_finish_reason(
    tmp_path: Path, engine: Engine, status: int, code: str, path: str
) -> None:
    publish_state(tmp_path, champion=1)
    body = ASK if path == "/v1/completions" else {"model": "headrace", "messages": [{"role": "user", "content": "x"}]}
    sink = EventList()
    async with running_gateway(tmp_path, {1: engine}, sink=sink) as client:
        await until(lambda: ready(client))
        streamed = await client.post(path, json=body | {"stream": True})
        assert streamed.status_code == 200 and "[DONE]" not in streamed.text
        *parts, last = events_of(streamed)
        assert last["error"]["code"] == code
        assert all(choice["finish_reason"] is None for part in parts for choice in part["choices"])
        whole = await client.post(path, json=body)
        assert (whole.status_code, error_of(whole)["code"]) == (status, code)
        assert {data.status for data in sink.data} == {"error"}


async def test_a_mistake_of_our_own_while_a_stream_is_written_is_its_error_event() -> None:
    async def answer() -> AsyncIterator[tuple[Chunk, ...]]:
        yield (Chunk(index=0, text="half"),)
        yield (Chunk(index=1, text="of a sequence that was not asked for"),)

    form = Form(kind="completion", id="cmpl-1", model="headrace-v1", num_sequences=1, num_choices=1)
    first, last = [event async for event in events(form, answer())]
    assert b'"half"' in first and json.loads(last.removeprefix(b"data: "))["error"]["code"] == "internal_error"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_is_closed_mid_answer_ends_it_with_an_error(tmp_path: Path, stream: bool) -> None:
    make_model(tmp_path, version=1, seed=1, context=1024)
    publish_state(tmp_path, champion=1)
    engine = TorchEngine(tmp_path / "models" / f"{1:08d}", SETTINGS)
    async with running_gateway(tmp_path, {1: engine}, settings=SETTINGS) as client:
        await until(lambda: ready(client))
        task = asyncio.create_task(client.post("/v1/completions", json=LONG | {"stream": stream}))
        await until(lambda: engine.stats().completion_tokens > 4)
        await asyncio.to_thread(engine.close)
        response = await task
        if stream:
            *parts, last = events_of(response)
            assert "error" in last and "[DONE]" not in response.text
            assert all(choice["finish_reason"] is None for part in parts for choice in part["choices"])
        else:
            assert response.status_code == 503 and error_of(response)
        assert not await ready(client)


@pytest.mark.parametrize("challenger", [Dead(), DiesMidway()])
async def test_a_challenger_that_dies_before_anything_is_shown_is_replaced_by_the_champion(
    engines: dict[int, Engine], tmp_path: Path, challenger: Engine
) -> None:
    publish_state(tmp_path, champion=1, challenger=2, canary_fraction=1.0)
    sink = EventList()
    async with running_gateway(tmp_path, {1: engines[1], 2: challenger}, sink=sink) as client:
        await until(lambda: ready(client))
        response = await client.post("/v1/completions", json=ASK)
        assert (response.status_code, response.headers["x-headrace-variant"]) == (200, "champion")
        assert response.json()["usage"]["completion_tokens"] == 8
        assert [(data.model_version, data.role, data.status) for data in sink.data] == [(2, "challenger", "error"), (1, "champion", "ok")]
