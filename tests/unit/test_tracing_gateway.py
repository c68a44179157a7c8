"""A request's trace through the gateway: from the client's header to the engine's answer and its event."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from ray_apps.serving.engine.interface import Chunk, Engine, Events, Failure, FinishReason, GenerationRequest
from schemas.events import is_traceparent
from schemas.settings import ServingSettings
from tests.collector import Collector, nobody_answers, running_collector, tracing_to
from tests.serving_harness import EventList, IdleEngine, publish_state, running_gateway, until

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "秘密的水渠"
ASK = {"model": "headrace", "prompt": SECRET, "max_tokens": 2}
REQUEST = "POST /v1/completions"
pytestmark = pytest.mark.anyio


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


class Echo(IdleEngine):
    """Answers every prompt with two tokens, or says that it failed."""

    def __init__(self, *, fails: bool = False) -> None:
        self._fails = fails

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        if self._fails:
            yield Failure(status=500, message=f"cannot answer {request.prompts[0]}", type="server_error", code="engine_failed")
            return
        for token, end in ((5, None), (6, FinishReason.LENGTH)):
            yield (Chunk(index=0, text=SECRET, token_ids=(token,), prompt_tokens=3, finish_reason=end),)


ENGINES: dict[int, Engine] = {1: Echo(), 2: Echo(fails=True)}


async def ask(
    root: Path, sink: EventList, *, model: str = "headrace", stream: bool = False, traceparent: str | None = None, num_events: int = 1
) -> int:
    """One request; returns its status when its events are there."""
    settings = ServingSettings(record_prompts=True)
    headers = {"traceparent": traceparent} if traceparent else {}
    async with running_gateway(root, ENGINES, settings=settings, sink=sink) as client:
        await until(lambda: is_ready(client))
        response = await client.post("/v1/completions", json=ASK | {"model": model, "stream": stream}, headers=headers)
        await until(lambda: len(sink.events) == num_events)
    return response.status_code


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_goes_on_with_the_clients_trace_into_its_event(collector: Collector, tmp_path: Path, stream: bool) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    with tracing_to(collector.endpoint, "headrace-gateway"):
        assert await ask(tmp_path, sink, traceparent=CLIENT, stream=stream) == 200
    (request,), (answer,) = collector.named(REQUEST), collector.named("answer")
    assert f"{request.trace_id}-{request.parent_id}" == CLIENT[3:52]
    assert request.attributes == {"http.request.method": "POST", "http.route": "/v1/completions", "http.response.status_code": 200}
    assert (answer.trace_id, answer.parent_id, answer.error) == (request.trace_id, request.span_id, None)
    assert [(event.traceparent or "")[3:52] for event in sink.events] == [answer.ids]
    assert (answer.attributes["headrace.model_version"], answer.attributes["headrace.status"]) == (1, "ok")
    assert (answer.attributes["gen_ai.usage.input_tokens"], answer.attributes["gen_ai.usage.output_tokens"]) == (3, 2)
    assert {one.name for one in collector.spans} == {REQUEST, "answer"}


async def test_a_primary_answer_and_its_failing_shadow_are_parts_of_one_request(collector: Collector, tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    sink = EventList()
    with tracing_to(collector.endpoint):
        assert await ask(tmp_path, sink, num_events=2) == 200
    (request,), answers = collector.named(REQUEST), collector.named("answer", 2)
    assert {answer.parent_id for answer in answers} == {request.span_id}
    told = {answer.attributes["headrace.shadow"]: answer for answer in answers}
    assert (told[False].attributes["headrace.model_version"], told[False].error) == (1, None)
    assert (told[True].attributes["headrace.model_version"], told[True].attributes["error.type"]) == (2, "engine_failed")


async def test_no_prompt_and_no_answer_is_ever_sent_to_the_collector(collector: Collector, tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    sink = EventList()
    with tracing_to(collector.endpoint):
        await ask(tmp_path, sink, num_events=2)
        await ask(tmp_path, EventList(), model="headrace-v2")
    assert collector.bodies and not any(SECRET.encode() in body for body in collector.bodies)
    assert sink.data[0].prompt == SECRET  # the event has it: recording was asked for


async def test_a_request_that_fails_is_an_error_in_its_trace(collector: Collector, tmp_path: Path) -> None:
    publish_state(tmp_path, champion=2)
    with tracing_to(collector.endpoint):
        assert await ask(tmp_path, EventList()) == 500
    (request,) = collector.named(REQUEST)
    assert (request.attributes["http.response.status_code"], request.attributes["error.type"], request.error) == (500, "500", "")


@pytest.mark.parametrize("traceparent", [None, "nonsense"])
async def test_events_carry_a_trace_also_without_a_collector(tmp_path: Path, traceparent: str | None) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    assert await ask(tmp_path, sink, traceparent=traceparent) == 200
    (event,) = sink.events
    assert event.traceparent and is_traceparent(event.traceparent)


async def test_a_collector_that_does_not_answer_delays_no_request(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    with nobody_answers() as endpoint, tracing_to(endpoint):
        assert await ask(tmp_path, sink) == 200
        assert sink.data[0].latency_s < 1.0


@pytest.mark.parametrize(("model", "pinned"), [("headrace", False), ("headrace-v1", True)])
async def test_an_event_says_whether_the_client_named_the_version(tmp_path: Path, model: str, pinned: bool) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    assert await ask(tmp_path, sink, model=model) == 200
    assert [data.pinned for data in sink.data] == [pinned]
