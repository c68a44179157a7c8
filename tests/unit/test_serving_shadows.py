"""Who answers and who gets a copy: shares, and shadow copies that nobody sees, waits for or suffers from."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_apps.serving.dispatch import MAX_SHADOWS
from ray_apps.serving.engine.interface import Engine
from schemas.settings import ServingSettings
from tests.misbehaving import (
    ASK,
    Buggy,
    Dead,
    DiesMidway,
    Failing,
    Misbehaving,
    Stuck,
    two_engines,
)
from tests.serving_harness import EventList, publish_state, ready, running_gateway, until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Engine]]:
    with two_engines(tmp_path_factory.mktemp("models")) as made:
        yield made


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
