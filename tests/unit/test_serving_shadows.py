"""Who answers and who gets a copy: shares, and shadow copies that nobody sees, waits for or suffers from."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from ray_apps.serving.dispatch import MAX_SHADOWS
from ray_apps.serving.engine.interface import Engine
from ray_apps.serving.engine.torch_engine import TorchEngine
from schemas.settings import ServingSettings
from tests.misbehaving import ASK, Buggy, Dead, DiesMidway, Failing, Misbehaving, Stuck, two_engines
from tests.model_factory import make_model
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


HEAVY = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
"""Some thirty times the work per token of the models that tests use."""


async def test_the_champions_answers_do_not_wait_for_a_shadow_that_eats_the_processor(tmp_path: Path) -> None:
    """Each answer comes while its copy is still being made, and its time is nearer to that without a shadow than to one that waits for it."""
    make_model(tmp_path, version=1, seed=1)
    make_model(tmp_path, version=2, seed=2, shape=HEAVY)
    engines: dict[int, Engine] = {version: TorchEngine(tmp_path / "models" / f"{version:08d}", ServingSettings()) for version in (1, 2)}
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    sink = EventList()
    alone: list[float] = []
    beside: list[float] = []
    try:
        async with running_gateway(tmp_path, engines, sink=sink) as client:
            await until(lambda: ready(client))

            async def timed(model: str) -> tuple[float, str]:
                begun_s = time.perf_counter()
                response = await client.post("/v1/completions", json=ASK | {"model": model, "max_tokens": 16})
                assert response.status_code == 200
                return time.perf_counter() - begun_s, response.headers["x-request-id"]

            await timed("headrace-v2")  # the first answer of an engine warms it up
            for _ in range(7):
                alone.append((await timed("headrace-v1"))[0])  # who names a version gets no copy
            for number in range(7):
                took_s, request_id = await timed("headrace")
                beside.append(took_s)
                assert request_id not in {data.request_id for data in sink.data if data.shadow}
                await until(lambda wanted=number + 1: sum(data.shadow for data in sink.data) == wanted)
    finally:
        for engine in engines.values():
            engine.close()
    copies = [data.engine_s for data in sink.data if data.shadow and data.engine_s is not None]
    assert len(copies) == 7
    assert median(beside) < (median(alone) + median(copies)) / 2, (alone, beside, copies)
