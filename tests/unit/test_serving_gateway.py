"""The gateway in process, over ASGI, with real engines and with engines that misbehave by name."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from ray_apps.serving import pulse
from ray_apps.serving.answers import Form, events
from ray_apps.serving.dispatch import MAX_SHADOWS
from ray_apps.serving.edge import LINGER_BYTES, MAX_BODY_BYTES
from ray_apps.serving.engine.interface import Chunk, Engine, EngineHealth, EngineStats, Events, Failure, FinishReason, GenerationRequest
from ray_apps.serving.engine.torch_engine import TorchEngine
from ray_apps.serving.engine_pool import LocalEngines, unavailable
from schemas.settings import ServingSettings
from tests.model_factory import make_model
from tests.serving_harness import EventList, publish_state, ready, running_gateway, until

ASK = {"model": "headrace", "prompt": "水渠", "max_tokens": 8, "temperature": 0}
LONG = ASK | {"max_tokens": 500, "prompt": ["x"] * 4, "temperature": 1, "seed": 5}
pytestmark = pytest.mark.anyio
SETTINGS = ServingSettings(max_concurrent_sequences=4, max_queued_requests=8)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Engine]]:
    root = tmp_path_factory.mktemp("models")
    make_model(root, version=1, seed=1, context=1024)
    make_model(root, version=2, seed=2, context=1024)
    engines: dict[int, Engine] = {version: TorchEngine(root / "models" / f"{version:08d}", SETTINGS) for version in (1, 2)}
    yield engines
    for engine in engines.values():
        engine.close()


class Misbehaving:
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

    def cancel(self, request_id: str) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(num_running=0, num_waiting=0, num_slots=0, prompt_tokens=0, completion_tokens=0)

    def health(self) -> EngineHealth:
        return EngineHealth(ok=True)

    def close(self) -> None: ...


class Stuck(Misbehaving):
    """Never answers."""


class Dead(Misbehaving):
    """Is gone before it answers, as a killed replica is."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        raise unavailable("killed")
        yield ()


class DiesMidway(Misbehaving):
    """Is gone after the first token."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        raise unavailable("killed")


class BuggyMidway(Misbehaving):
    """Raises what no engine should, after the first token."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        raise ZeroDivisionError("a bug")


class StopsMidway(Misbehaving):
    """Ends without a word after the first token."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)


class GivesUp(Misbehaving):
    """Says that nobody waits for the answer, though somebody does."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        yield (Chunk(index=0, prompt_tokens=1, finish_reason=FinishReason.CANCELLED),)


class Failing(Misbehaving):
    """Says that it failed."""

    async def misbehave(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield Failure(status=500, message="bad step", type="server_error", code="engine_failed")


class Buggy(Misbehaving):
    """Raises what no engine should."""

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


async def test_a_completion_has_openais_shape_and_says_who_answered(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines) as client:
        await until(lambda: ready(client))
        response = await client.post("/v1/completions", json=ASK)
        body = response.json()
        assert response.status_code == 200
        assert response.headers["x-headrace-model-version"] == "1"
        assert response.headers["x-headrace-variant"] == "champion"
        assert body["object"] == "text_completion" and body["model"] == "headrace-v1"
        assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9}
        assert [choice["finish_reason"] for choice in body["choices"]] == ["length"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", ASK | {"temperature": 1, "seed": 3, "max_tokens": 40, "n": 2, "prompt": ["水渠", "x"]}),
        ("/v1/chat/completions", {"model": "headrace", "messages": [{"role": "user", "content": "你好"}], "seed": 3, "max_tokens": 40, "n": 2}),
    ],
)
async def test_a_stream_adds_up_to_the_answer_in_one_piece(engines: dict[int, Engine], tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines) as client:
        await until(lambda: ready(client))
        whole = (await client.post(path, json=body)).json()
        stream = await client.post(path, json=body | {"stream": True, "stream_options": {"include_usage": True}})
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.text.endswith("data: [DONE]\n\n")
        *chunks, last = events_of(stream)
        assert last["choices"] == [] and last["usage"] == whole["usage"]
        for choice in whole["choices"]:
            mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
            joined = "".join(part["text"] if "text" in part else part["delta"].get("content", "") for part in mine)
            assert joined == (choice["text"] if "text" in choice else choice["message"]["content"])
            assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [choice["finish_reason"]]


async def test_every_wrong_request_gets_the_openai_error_body(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    cases: list[tuple[str, str, Any, int, str]] = [
        ("GET", "/nowhere", None, 404, "unknown_url"),
        ("POST", "/nowhere", b"x", 404, "unknown_url"),
        ("GET", "/v1/completions", None, 405, "method_not_allowed"),
        ("POST", "/v1/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/completions", ASK | {"foo": 1}, 400, "unknown_parameter"),
        ("POST", "/v1/completions", ASK | {"prompt": "x " * 9000}, 400, "context_length_exceeded"),
        ("POST", "/v1/completions", ASK | {"max_tokens": 513}, 400, "invalid_value"),
        ("POST", "/v1/completions", ASK | {"n": 13}, 400, "invalid_value"),
        ("POST", "/v1/completions", ASK | {"model": "gpt-4"}, 404, "model_not_found"),
        ("POST", "/v1/completions", ASK | {"model": "headrace-v9"}, 404, "model_not_found"),
        ("GET", "/v1/models/gpt-4", None, 404, "model_not_found"),
        ("POST", "/v1/completions", b"x" * (MAX_BODY_BYTES + 1), 413, "request_too_large"),
    ]
    async with running_gateway(tmp_path, engines, settings=SETTINGS) as client:
        await until(lambda: ready(client))
        for method, path, body, status, code in cases:
            content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            response = await client.request(method, path, content=content)
            assert (response.status_code, error_of(response)["code"]) == (status, code), path


async def test_a_body_without_length_is_cut_off_at_the_limit(engines: dict[int, Engine], tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 2**16
            yield b" " * 2**16

    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines) as client:
        response = await client.post("/v1/completions", content=endless())
        assert response.status_code == 413
        assert sent <= MAX_BODY_BYTES + LINGER_BYTES + 2 * 2**16


async def test_keys_are_asked_for_everywhere_but_health(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    settings = ServingSettings(api_keys=(SecretStr("right-key"), SecretStr("另一把")))
    async with running_gateway(tmp_path, engines, settings=settings) as client:
        await until(lambda: ready(client))
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic right-key"}, {"authorization": "right-key"}):
            for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nowhere")):
                response = await client.request(method, path, headers=header)
                assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/v1/models", headers={"authorization": "Bearer right-key"})).status_code == 200
        assert (await client.post("/v1/completions", json=ASK, headers={"authorization": "bearer right-key"})).status_code == 200


async def test_without_a_model_health_says_what_is_missing_and_requests_get_503(engines: dict[int, Engine], tmp_path: Path) -> None:
    async with running_gateway(tmp_path, engines) as client:
        health = await client.get("/health")
        assert health.status_code == 503 and "champion" in health.json()["missing"]
        response = await client.post("/v1/completions", json=ASK)
        assert (response.status_code, error_of(response)["code"], response.headers["retry-after"]) == (503, "no_model", "1")
    publish_state(tmp_path, champion=7)
    async with running_gateway(tmp_path, engines) as client:
        await until(lambda: health_says(client, "champion 7"))
        response = await client.post("/v1/completions", json=ASK)
        assert (response.status_code, error_of(response)["code"]) == (503, "engine_unavailable")


async def health_says(client: httpx.AsyncClient, words: str) -> bool:
    return words in (await client.get("/health")).json().get("missing", "")


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


async def test_head_is_answered_wherever_get_is(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines) as client:
        await until(lambda: ready(client))
        for path in ("/health", "/metrics", "/v1/models", "/v1/models/headrace"):
            assert (await client.head(path)).status_code == 200, path


async def test_a_full_engine_answers_429_with_retry_after(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines, settings=SETTINGS) as client:
        await until(lambda: ready(client))
        busy = [asyncio.create_task(client.post("/v1/completions", json=LONG)) for _ in range(3)]
        await until(lambda: engines[1].stats().num_running + engines[1].stats().num_waiting == 12)
        response = await client.post("/v1/completions", json=ASK)
        assert (response.status_code, error_of(response)["code"], response.headers["retry-after"]) == (429, "queue_full", "1")
        assert [(await task).status_code for task in busy] == [200] * 3


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


async def test_traffic_is_split_by_weight_with_sticky_keys(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1, challenger=2, canary_fraction=0.5)
    async with running_gateway(tmp_path, engines) as client:
        await until(lambda: ready(client))
        one = ASK | {"max_tokens": 1}

        async def variant(body: dict[str, Any], headers: dict[str, str]) -> str:
            return (await client.post("/v1/completions", json=one | body, headers=headers)).headers["x-headrace-variant"]

        users = [[await variant({"user": f"u{n}"}, {}) for _ in range(2)] for n in range(30)]
        sessions = [await variant({}, {"x-headrace-session": f"u{n}"}) for n in range(30)]
        assert all(first == second for first, second in users)
        assert sessions == [first for first, _ in users]
        assert {first for first, _ in users} == {"champion", "challenger"}
        assert {await variant({}, {}) for _ in range(40)} == {"champion", "challenger"}
        pinned = await client.post("/v1/completions", json=one | {"model": "headrace-v2"})
        assert pinned.headers["x-headrace-model-version"] == "2"


async def test_a_shadow_copy_is_told_as_such_and_never_seen(engines: dict[int, Engine], tmp_path: Path) -> None:
    state = publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    sink = EventList()
    async with running_gateway(tmp_path, engines, settings=ServingSettings(record_prompts=True), sink=sink) as client:
        await until(lambda: ready(client))
        response = await client.post("/v1/completions", json=ASK)
        await until(lambda: len(sink.events) == 2)
        told = {data.shadow: data for data in sink.data}
        assert response.headers["x-headrace-model-version"] == "1"
        assert (told[False].model_version, told[False].role) == (1, "champion")
        assert (told[True].model_version, told[True].role) == (2, "challenger")
        assert {data.request_id for data in sink.data} == {response.headers["x-request-id"]}
        assert {data.rollout_number for data in sink.data} == {state.number}
        assert told[False].completion == response.json()["choices"][0]["text"] and told[False].prompt == "水渠"
        assert len({event.id for event in sink.events}) == 2
        assert all(data.completion_tokens == 8 and data.time_to_first_token_s is not None for data in sink.data)


@pytest.mark.parametrize("challenger", [Stuck(), Dead(), Failing(), Buggy(), DiesMidway()])
async def test_a_shadow_that_misbehaves_never_touches_the_primary_answer(engines: dict[int, Engine], tmp_path: Path, challenger: Misbehaving) -> None:
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    sink = EventList()
    async with running_gateway(tmp_path, {1: engines[1], 2: challenger}, sink=sink) as client:
        await until(lambda: ready(client))
        for _ in range(MAX_SHADOWS + 4):
            async with asyncio.timeout(5):
                response = await client.post("/v1/completions", json=ASK | {"max_tokens": 1})
            assert response.status_code == 200 and response.json()["usage"]["completion_tokens"] == 1
        assert sum(not data.shadow and data.status == "ok" for data in sink.data) == MAX_SHADOWS + 4
        if isinstance(challenger, Stuck):
            assert len(challenger.requests) == MAX_SHADOWS
            assert "headrace_shadow_dropped_total 4.0" in (await client.get("/metrics")).text
        else:
            await until(lambda: any(data.shadow for data in sink.data))
            assert {data.status for data in sink.data if data.shadow} == {"error"}


async def test_a_client_that_goes_away_does_not_take_the_shadow_copy_with_it(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    stuck = Stuck()
    sink = EventList()
    async with running_gateway(tmp_path, {1: stuck, 2: engines[2]}, sink=sink) as client:
        await until(lambda: ready(client))
        task = asyncio.create_task(client.post("/v1/completions", json=ASK))
        await until(lambda: len(stuck.requests) == 1)
        task.cancel()
        await until(lambda: len(sink.data) == 2)
        assert {(data.shadow, data.finish_reason) for data in sink.data} == {(False, "cancelled"), (True, "length")}


async def test_events_carry_no_text_unless_the_user_opts_in(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    async with running_gateway(tmp_path, engines, sink=sink) as client:
        await until(lambda: ready(client))
        await client.post("/v1/completions", json=ASK)
        assert [(data.prompt, data.completion) for data in sink.data] == [(None, None)]


class FailingSink(EventList):
    """Breaks whatever it is given."""

    def publish(self, *_: Any, **__: Any) -> None:
        raise OSError("no queue")


async def test_an_event_that_cannot_be_published_does_not_hurt_the_answer(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines, sink=FailingSink()) as client:
        await until(lambda: ready(client))
        assert (await client.post("/v1/completions", json=ASK)).status_code == 200


async def test_models_are_listed_with_the_routed_one_first(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines) as client:
        await until(lambda: ready(client))
        assert [card["id"] for card in (await client.get("/v1/models")).json()["data"]] == ["headrace", "headrace-v1", "headrace-v2"]
        assert (await client.get("/v1/models/headrace-v2")).json()["object"] == "model"


async def test_metrics_count_answers_statuses_and_tokens(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines) as client:
        await until(lambda: ready(client))
        await client.post("/v1/completions", json=ASK)
        await client.post("/v1/completions", content=b"{")
        text = (await client.get("/metrics")).text
        assert 'headrace_answers_running{role="champion",shadow="false",version="1"} 0.0' in text
        assert 'headrace_answers_total{outcome="ok",role="champion",shadow="false",version="1"} 1.0' in text
        assert 'headrace_tokens_total{kind="completion",version="1"} 8.0' in text
        assert 'headrace_http_responses_total{status="400"} 1.0' in text
