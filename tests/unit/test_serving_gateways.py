"""Several gateways of one root: what they share, what is divided between them, what is added up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ray_apps.serving.engine.interface import Chunk, Engine, Events, FinishReason, GenerationRequest
from ray_apps.serving.engine_pool import LocalEngines
from ray_apps.serving.following import RolloutFollower
from ray_apps.serving.gateway import Place, build_gateway
from ray_apps.serving.metrics import Metrics, Snapshot
from ray_apps.serving.metrics_sum import FORGOTTEN_S, SILENT_S, MetricsSum
from schemas.settings import ServingSettings
from tests.serving_harness import IdleEngine, lifespan, publish_state, ready, until

ASKED = {"model": "headrace", "prompt": "water"}


class Noting(IdleEngine):
    """Answers with one token, when it may; keeps the requests."""

    def __init__(self, may_answer: asyncio.Event | None = None) -> None:
        self.requests: list[GenerationRequest] = []
        self._may_answer = may_answer

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        self.requests.append(request)
        if self._may_answer is not None:
            await self._may_answer.wait()
        yield (Chunk(index=0, text="w", token_ids=(1,), finish_reason=FinishReason.LENGTH, prompt_tokens=1),)


@asynccontextmanager
async def gateways(root: Path, engines: dict[int, Engine], most: int, settings: ServingSettings) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of so many gateways, whose numbers are added up."""
    total = MetricsSum()
    async with AsyncExitStack() as stack:
        clients = []
        for rank in range(most):

            async def add_up(snapshot: Snapshot, name: str = str(rank)) -> bytes:
                total.take(name, snapshot, 0.0)
                return total.render(0.0)

            place = Place(rank=rank, most=most)
            app = build_gateway(settings, LocalEngines(engines), RolloutFollower(root), sink=None, poll_interval_s=0.02, place=place, add_up=add_up)
            await stack.enter_async_context(lifespan(app))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            clients.append(await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test")))
        for client in clients:
            await until(lambda client=client: ready(client))
        yield clients


def test_each_gateway_tells_the_numbers_of_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        publish_state(tmp_path, champion=1)
        async with gateways(tmp_path, {1: Noting()}, 2, ServingSettings()) as clients:
            for client in (clients[0], clients[0], clients[1]):
                assert (await client.post("/v1/completions", json=ASKED)).status_code == 200
            assert (await clients[0].get("/metrics")).status_code == 200  # it has told its numbers
            text = (await clients[1].get("/metrics")).text
            assert 'headrace_answers_total{outcome="ok",role="champion",shadow="false",version="1"} 3.0' in text

    asyncio.run(scenario())


def test_gateways_route_the_same_key_alike_and_list_the_same_models(tmp_path: Path) -> None:
    async def scenario() -> None:
        publish_state(tmp_path, champion=1, challenger=2, canary_fraction=0.5)
        async with gateways(tmp_path, {1: Noting(), 2: Noting()}, 2, ServingSettings()) as clients:
            for user in range(20):
                answers = [await client.post("/v1/completions", json=ASKED | {"user": f"u{user}"}) for client in clients]
                assert len({answer.headers["x-headrace-model-version"] for answer in answers}) == 1
            assert (await clients[0].get("/v1/models")).json() == (await clients[1].get("/v1/models")).json()

    asyncio.run(scenario())


def test_all_gateways_together_send_no_more_shadow_copies_at_once_than_one_would(tmp_path: Path) -> None:
    from ray_apps.serving.dispatch import MAX_SHADOWS

    async def scenario() -> None:
        publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
        may_answer = asyncio.Event()
        challenger = Noting(may_answer)
        async with gateways(tmp_path, {1: Noting(), 2: challenger}, 4, ServingSettings()) as clients:
            for client in clients:
                for _ in range(MAX_SHADOWS // 4 + 3):
                    assert (await client.post("/v1/completions", json=ASKED)).status_code == 200
            assert len(challenger.requests) == MAX_SHADOWS
            may_answer.set()

    asyncio.run(scenario())
    assert Place(most=100).max_shadows == 1


def test_gateways_draw_different_seeds_and_the_first_one_those_of_a_gateway_alone(tmp_path: Path) -> None:
    async def drawn(most: int) -> list[list[int]]:
        engine = Noting()
        async with gateways(tmp_path, {1: engine}, most, ServingSettings(seed=7)) as clients:
            for client in clients:
                for _ in range(3):
                    await client.post("/v1/completions", json=ASKED)
        seeds = [request.sampling.seed for request in engine.requests]
        return [seeds[at : at + 3] for at in range(0, len(seeds), 3)]

    publish_state(tmp_path, champion=1)
    (alone,) = asyncio.run(drawn(1))
    first, second = asyncio.run(drawn(2))
    assert first == alone and not set(first) & set(second)


def test_numbers_that_cannot_be_added_up_are_a_503_and_never_those_of_one_gateway_alone(tmp_path: Path) -> None:
    async def fail(_: Snapshot) -> bytes:
        raise ConnectionError("gone")

    async def scenario() -> None:
        publish_state(tmp_path, champion=1)
        app = build_gateway(ServingSettings(), LocalEngines({1: Noting()}), RolloutFollower(tmp_path), sink=None, poll_interval_s=0.02, add_up=fail)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with lifespan(app), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.get("/metrics")
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "metrics_unavailable"
            await until(lambda: ready(client))

    asyncio.run(scenario())


def counted(answers: int, running: int = 0) -> Snapshot:
    metrics = Metrics()
    for _ in range(answers):
        metrics.observe(1, "champion", shadow=False, outcome="ok", latency_s=0.2)
    for _ in range(running):
        metrics.begin(1, "champion", shadow=False)
    return metrics.snapshot()


def values(text: bytes, prefix: str) -> list[float]:
    families = text_string_to_metric_families(text.decode())
    return [sample.value for family in families for sample in family.samples if sample.name.startswith(prefix)]


def test_what_a_gateway_has_counted_stays_when_it_goes_and_what_it_was_doing_does_not() -> None:
    total = MetricsSum()
    total.take("a", counted(5, running=2), now_s=0.0)
    total.take("b", counted(1, running=1), now_s=SILENT_S + 1)
    for now_s in (SILENT_S + 1, FORGOTTEN_S + 1):
        text = total.render(now_s)
        assert values(text, "headrace_answers_total") == [6.0] and values(text, "headrace_answer_latency_seconds_count") == [6.0]
    assert values(total.render(SILENT_S + 1), "headrace_answers_running") == [1.0]
    total.take("b", counted(2), now_s=2 * FORGOTTEN_S)
    total.take("c", counted(1), now_s=4 * FORGOTTEN_S)
    assert values(total.render(4 * FORGOTTEN_S), "headrace_answers_total") == [8.0], "those of a and b are kept in one place"
    assert len(total._told) == 1


@pytest.mark.parametrize("running", [0, 3])
def test_the_sum_of_one_gateway_has_its_own_lines(running: int) -> None:
    metrics = Metrics()
    metrics.observe(2, "challenger", shadow=True, outcome="error", latency_s=3.0)
    metrics.count_tokens(2, 3, 4)
    metrics.count_response(503)
    for _ in range(running):
        metrics.begin(2, "challenger", shadow=True)
    total = MetricsSum()
    total.take("a", metrics.snapshot(), 0.0)
    summed, own = total.render(0.0).splitlines(), metrics.render().splitlines()
    assert sorted(line for line in summed if line[:1] != b"#") == sorted(line for line in own if line[:1] != b"#")
    assert set(summed) <= set(own), "with the same help and types"
