"""What becomes of an answer, who answers instead, and what a trial makes of it: the gateway in process, over engines that misbehave by name."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_apps.rollout.evidence import Evidence, LossComparison
from ray_apps.rollout.policy import decide
from ray_apps.rollout.tally import TrialTally
from ray_apps.serving.engine.interface import Chunk, EngineHealth, Events, Failure, FinishReason, GenerationRequest, Timing
from ray_apps.serving.metrics import Metrics
from ray_apps.serving.record import Assignment, Recorder
from schemas.rollout import Decision, RolloutState
from schemas.settings import RolloutSettings, ServingSettings
from tests.serving_harness import EventList, IdleEngine, publish_state, ready, running_gateway, until

pytestmark = pytest.mark.anyio
ASK: dict[str, Any] = {"model": "headrace", "prompt": "x", "max_tokens": 8}
CHAT: dict[str, Any] = {"model": "headrace", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
REFUSED = Failure(status=400, message="too long", code="context_length_exceeded")
FULL = Failure(status=429, message="try again later", type="rate_limit_error", code="queue_full", retry_after_s=1)
SHUT = Failure(status=503, message="shutting down", type="server_error", code="shutting_down", retry_after_s=1)


class Good(IdleEngine):
    """Answers two tokens, timed."""

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="a", token_ids=(5,), prompt_tokens=1),)
        timing = Timing(queue_s=1.0, prefill_s=2.0, decode_s=4.0)
        yield (Chunk(index=0, text="b", token_ids=(6,), prompt_tokens=1, finish_reason=FinishReason.STOP, timing=timing),)


class Hung(Good):
    """Takes requests and never says a word, as a process stopped by SIGSTOP does."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        self.num_asked += 1
        await asyncio.Event().wait()
        yield ()


class Slow(Good):
    """Is well, and answers when it may."""

    def __init__(self) -> None:
        self.go_on, self.num_health = asyncio.Event(), 0

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        await self.go_on.wait()
        async for events in Good.submit(self, request):
            yield events

    def health(self) -> EngineHealth:
        self.num_health += 1
        return EngineHealth(ok=True)


class HangsMidway(Good):
    """Begins well, and says no more."""

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        await asyncio.Event().wait()


class Says(Good):
    """Ends every request with the same failure."""

    def __init__(self, failure: Failure) -> None:
        self._failure = failure

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield self._failure


class WithoutChat(Good):
    """Completes, and refuses chats: it has no template."""

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        if request.messages:
            yield Failure(status=400, message="no chat template", code="no_chat_template")
            return
        async for events in Good.submit(self, request):
            yield events


class Cut(Good):
    """Stops in the middle; with or without calling it cancelled."""

    def __init__(self, last: FinishReason | None) -> None:
        self._last = last

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        if self._last is not None:
            yield (Chunk(index=0, finish_reason=self._last, prompt_tokens=1),)


class Raises(Good):
    """Raises what no engine should, in the middle."""

    async def submit(self, request: GenerationRequest) -> AsyncIterator[Events]:
        yield (Chunk(index=0, text="half", token_ids=(5,), prompt_tokens=1),)
        raise ZeroDivisionError("a bug")


def evidence(state: RolloutState, sink: EventList) -> Evidence:
    tally = TrialTally(state)
    for event in sink.events:
        tally.add(event)
    return tally.evidence(LossComparison(status="unavailable"))


def told(sink: EventList) -> list[tuple[int, str, str | None]]:
    return [(data.model_version, data.status, data.error_code) for data in sink.data]


def decision(state: RolloutState, sink: EventList) -> RolloutState | None:
    """What the policy makes of it; the state is the loop's, not a person's."""
    of_the_loop = state.model_copy(update={"decision": Decision.ADVANCE})
    return decide(of_the_loop, evidence(state, sink), RolloutSettings(), datetime.now(UTC))


async def test_a_challenger_that_hangs_until_clients_give_up_is_withdrawn_and_not_promoted(tmp_path: Path) -> None:
    state = publish_state(tmp_path, champion=1, challenger=2, canary_fraction=0.5)
    sink, hung = EventList(), Hung()
    async with running_gateway(tmp_path, {1: Good(), 2: hung}, sink=sink) as client:
        await until(lambda: ready(client))
        for number in range(80):
            asked = hung.num_asked
            task = asyncio.create_task(client.post("/v1/completions", json=ASK | {"user": f"u{number}"}))
            await until(lambda task=task, asked=asked: task.done() or hung.num_asked > asked)
            if not task.done():
                task.cancel()  # a client whose own time limit is below ours
                await asyncio.wait([task])
                await until(lambda number=number: len(sink.data) == number + 1)
    seen = evidence(state, sink)
    assert {data.status for data in sink.data if data.model_version == 2} == {"cancelled"}
    assert seen.challenger.answers == 0 and seen.challenger.cancellations == hung.num_asked >= 20 and seen.champion.answers > 20
    after = decision(state, sink)
    assert after is not None and after.decision is Decision.ABORT and "were given up before it had answered" in after.reason


async def test_a_challenger_that_refuses_all_chats_loses_though_it_completes_and_no_client_sees_a_refusal(tmp_path: Path) -> None:
    state = publish_state(tmp_path, champion=1, challenger=2, canary_fraction=0.5)
    sink = EventList()
    async with running_gateway(tmp_path, {1: Good(), 2: WithoutChat()}, sink=sink) as client:
        await until(lambda: ready(client))
        for number in range(60):
            for path, body in (("/v1/completions", ASK), ("/v1/chat/completions", CHAT)):
                assert (await client.post(path, json=body | {"user": f"u{number}"})).status_code == 200
    seen = evidence(state, sink)
    assert seen.challenger.answers == seen.challenger.refusals >= 20
    after = decision(state, sink)
    assert after is not None and after.decision is Decision.ABORT and "by refusing what model 1 answered" in after.reason


async def test_a_shadow_that_refuses_what_the_champion_answers_is_withdrawn(tmp_path: Path) -> None:
    state = publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    sink = EventList()
    async with running_gateway(tmp_path, {1: Good(), 2: WithoutChat()}, sink=sink) as client:
        await until(lambda: ready(client))
        for number in range(10):
            assert (await client.post("/v1/chat/completions", json=CHAT | {"user": f"u{number}"})).status_code == 200
        await until(lambda: len(sink.data) == 20)
    assert evidence(state, sink).challenger.refusals == 10
    after = decision(state, sink)
    assert after is not None and after.decision is Decision.ABORT


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("challenger", "status", "code"),
    [(Says(FULL), "refused", "queue_full"), (Says(REFUSED), "refused", "context_length_exceeded"), (Says(SHUT), "error", "shutting_down")],
    ids=["full", "refuses", "shuts-down"],
)
async def test_the_champion_answers_in_the_place_of_a_challenger_and_both_are_told(
    tmp_path: Path, challenger: Good, status: str, code: str, stream: bool
) -> None:
    publish_state(tmp_path, champion=1, challenger=2, canary_fraction=1.0)
    sink = EventList()
    async with running_gateway(tmp_path, {1: Good(), 2: challenger}, sink=sink) as client:
        await until(lambda: ready(client))
        response = await client.post("/v1/completions", json=ASK | {"stream": stream})
        assert (response.status_code, response.headers["x-headrace-variant"]) == (200, "champion")
        assert told(sink) == [(2, status, code), (1, "ok", None)]
        assert [data.attempt for data in sink.data] == [1, 2] and len({event.id for event in sink.events}) == 2
        pinned = await client.post("/v1/completions", json=ASK | {"model": "headrace-v2"})
        assert not pinned.is_success, "who names a version gets that version's answer"


async def test_a_request_that_the_champion_refuses_too_is_its_own_fault(tmp_path: Path) -> None:
    state = publish_state(tmp_path, champion=1, challenger=2, canary_fraction=1.0)
    sink = EventList()
    async with running_gateway(tmp_path, {1: Says(REFUSED), 2: Says(REFUSED)}, sink=sink) as client:
        await until(lambda: ready(client))
        for _ in range(20):
            assert (await client.post("/v1/completions", json=ASK)).status_code == 400
    assert told(sink)[:2] == [(2, "refused", "context_length_exceeded"), (1, "refused", "context_length_exceeded")]
    assert evidence(state, sink).challenger.requests == 0 and decision(state, sink) is None


async def test_a_challenger_without_a_first_token_in_half_of_the_time_leaves_the_champion_the_rest(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1, challenger=2, canary_fraction=1.0)
    sink = EventList()
    async with running_gateway(tmp_path, {1: Good(), 2: Hung()}, settings=ServingSettings(request_timeout_s=4.0), sink=sink) as client:
        await until(lambda: ready(client))
        response = await client.post("/v1/completions", json=ASK)
        assert (response.status_code, response.headers["x-headrace-variant"]) == (200, "champion")
        assert told(sink) == [(2, "error", "timeout"), (1, "ok", None)]


async def test_a_challenger_that_is_not_well_is_told_by_health_and_its_users_get_the_champions_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_apps.serving.engine_pool.ASK_EVERY_S", 0.05)
    state = publish_state(tmp_path, champion=1, challenger=2, canary_fraction=1.0)
    sink, hung = EventList(), Hung()
    monkeypatch.setattr(hung, "health", lambda: EngineHealth(ok=False, reason="no step has ended for 9 s"))
    async with running_gateway(tmp_path, {1: Good(), 2: hung}, settings=ServingSettings(request_timeout_s=600.0), sink=sink) as client:
        await until(lambda: ready(client))
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        assert health.json()["challenger_missing"] == "the engine of challenger 2 is not healthy: no step has ended for 9 s"
        for number in range(20):
            response = await client.post("/v1/completions", json=ASK | {"user": f"u{number}"})
            assert (response.status_code, response.headers["x-headrace-variant"]) == (200, "champion")
    assert {(version, status) for version, status, _ in told(sink)} == {(2, "error"), (1, "ok")}
    after = decision(state, sink)
    assert after is not None and after.decision is Decision.ABORT


async def test_a_challenger_that_is_slow_and_well_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_apps.serving.engine_pool.ASK_EVERY_S", 0.01)
    publish_state(tmp_path, champion=1, challenger=2, canary_fraction=1.0)
    sink, slow = EventList(), Slow()
    async with running_gateway(tmp_path, {1: Good(), 2: slow}, sink=sink) as client:
        await until(lambda: ready(client))
        task = asyncio.create_task(client.post("/v1/completions", json=ASK))
        await until(lambda: slow.num_health > 3)
        slow.go_on.set()
        assert (await task).headers["x-headrace-variant"] == "challenger"


async def test_a_champion_that_hangs_is_an_error_once_and_nobody_is_asked_after_the_time_is_up(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    async with running_gateway(tmp_path, {1: Hung()}, settings=ServingSettings(request_timeout_s=0.1), sink=sink) as client:
        await until(lambda: ready(client))
        assert (await client.post("/v1/completions", json=ASK)).status_code == 504
        assert told(sink) == [(1, "error", "timeout")]


async def test_the_champion_is_not_asked_for_what_it_has_no_time_to_answer(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1, challenger=2, canary_fraction=1.0)
    sink = EventList()
    async with running_gateway(tmp_path, {1: Good(), 2: HangsMidway()}, settings=ServingSettings(request_timeout_s=0.5), sink=sink) as client:
        await until(lambda: ready(client))
        assert (await client.post("/v1/completions", json=ASK)).status_code == 504
        assert told(sink) == [(2, "error", "timeout")]


async def test_every_attempt_is_an_event_of_its_own(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    async with running_gateway(tmp_path, {1: Says(SHUT)}, sink=sink) as client:
        await until(lambda: ready(client))
        assert (await client.post("/v1/completions", json=ASK)).status_code == 503
        assert [data.attempt for data in sink.data] == [1, 2] and len({event.id for event in sink.events}) == 2


@pytest.mark.parametrize("engine", [Cut(None), Cut(FinishReason.CANCELLED), Raises()], ids=["ends", "cancels", "raises"])
async def test_an_answer_that_breaks_off_is_an_error_and_never_has_a_finish_reason(tmp_path: Path, engine: Good) -> None:
    publish_state(tmp_path, champion=1)
    sink = EventList()
    async with running_gateway(tmp_path, {1: engine}, sink=sink) as client:
        await until(lambda: ready(client))
        assert (await client.post("/v1/completions", json=ASK)).status_code >= 500
        stream = await client.post("/v1/completions", json=ASK | {"stream": True})
        assert '"error"' in stream.text and "[DONE]" not in stream.text and '"finish_reason":"' not in stream.text
    assert {data.status for data in sink.data} == {"error"}


async def test_a_gateway_that_stops_cancels_its_copies_and_they_are_no_answers(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=1, challenger=2, shadow_fraction=1.0)
    sink, hung = EventList(), Hung()
    async with running_gateway(tmp_path, {1: Good(), 2: hung}, sink=sink) as client:
        await until(lambda: ready(client))
        assert (await client.post("/v1/completions", json=ASK)).status_code == 200
        await until(lambda: hung.num_asked == 1)
    assert sorted(told(sink)) == [(1, "ok", None), (2, "cancelled", None)]


def assignment() -> Assignment:
    return Assignment(
        request_id="r",
        version=1,
        role="champion",
        shadow=False,
        pinned=False,
        rollout_number=1,
        attempt=1,
        user_hash="0" * 16,
        arrived_s=time.perf_counter(),
        traceparent=None,
    )


@pytest.mark.parametrize("is_timed", [True, False])
async def test_the_engines_time_leaves_out_the_clients_reading(is_timed: bool) -> None:
    async def answer() -> AsyncIterator[tuple[Chunk, ...]]:
        async for events in Good().submit(GenerationRequest(id="g", prompts=("x",))):
            assert isinstance(events, tuple)
            yield events if is_timed else tuple(Chunk(index=0, token_ids=(5,), finish_reason=chunk.finish_reason) for chunk in events)

    sink = EventList()
    began_s = time.perf_counter()
    async for _ in Recorder(Metrics(), sink, record_prompts=False).observe(answer(), GenerationRequest(id="g", prompts=("x",)), assignment()):
        while time.perf_counter() < began_s + 0.2:
            pass  # a client that reads slowly
    (data,) = sink.data
    assert data.status == "ok" and data.engine_s is not None
    assert data.engine_s == 7.0 if is_timed else data.engine_s + 0.15 < data.latency_s


async def test_a_client_that_leaves_after_the_last_chunk_has_its_answer() -> None:
    sink = EventList()
    stream = Recorder(Metrics(), sink, record_prompts=False).observe(
        Good().submit(GenerationRequest(id="g", prompts=("x",))),  # type: ignore[arg-type]
        GenerationRequest(id="g", prompts=("x",)),
        assignment(),
    )
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    assert [data.status for data in sink.data] == ["ok"]


async def test_an_engine_that_failed_to_start_is_not_said_to_be_starting(tmp_path: Path) -> None:
    publish_state(tmp_path, champion=7)
    async with running_gateway(tmp_path, {}) as client:
        await until(lambda: _missing(client, "champion 7"))
        response = await client.post("/v1/completions", json=ASK)
        assert response.status_code == 503 and "is not loaded" in response.text and "being started" not in response.text


async def _missing(client: httpx.AsyncClient, words: str) -> bool:
    return words in (await client.get("/health")).json().get("missing", "")
