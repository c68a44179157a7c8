"""The gateway in process, over ASGI, with real engines: what clients send, what they get, what is listed and counted."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ops.supervisor.root_lock import kafka_of_running_up, root_lock
from pipelines.runtime.up_note import UpNote
from ray_apps.serving.edge import LINGER_BYTES, MAX_BODY_BYTES
from ray_apps.serving.engine.interface import Engine
from schemas.settings import ServingSettings
from tests.misbehaving import (
    ASK,
    LONG,
    SETTINGS,
    error_of,
    events_of,
    health_says,
    two_engines,
)
from tests.serving_harness import EventList, publish_state, ready, running_gateway, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Engine]]:
    with two_engines(tmp_path_factory.mktemp("models")) as made:
        yield made


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


async def test_health_names_what_up_left_down_and_stays_well(engines: dict[int, Engine], tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    async with running_gateway(tmp_path, engines) as client:
        await until(lambda: ready(client))
        with root_lock(tmp_path) as lock:
            assert "down" not in (await client.get("/health")).json()
            UpNote("1", "127.0.0.1:9092", down=("ingest",)).write(lock)
            health = await client.get("/health")
            assert (health.status_code, health.json()["down"]) == (200, ["ingest"])
            assert kafka_of_running_up(tmp_path) == "127.0.0.1:9092"
        assert "down" not in (await client.get("/health")).json()


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
