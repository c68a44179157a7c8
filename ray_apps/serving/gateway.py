"""The HTTP service: OpenAI's API in front of the engines.

``build_gateway`` makes a FastAPI application out of its parts; it runs the same under Ray Serve (app.py) and in one process (tests,
embedding). Invariants: nothing a client sends ends in anything but an answer or an OpenAI error body; when a client goes away, its
generation is cancelled; a background task that follows the rollout never dies of one failure; ``/health`` says ok only if the champion's
engine answers now. Several gateways of one root answer alike: what each keeps to itself is in ``Place``, and their numbers are added up.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import xxhash
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pipelines.runtime.tracing import current_traceparent
from pipelines.runtime.up_note import read_up_note
from ray_apps.serving.answers import AnswerSoFar, Form, events, whole
from ray_apps.serving.asgi import App, Receive, Scope, Send, Surroundings, disconnected, error_response, install_error_bodies, read_body
from ray_apps.serving.dispatch import MAX_SHADOWS, MODEL, Answer, Dispatcher, Job
from ray_apps.serving.edge import Edge
from ray_apps.serving.engine.interface import GenerationRequest, Message, Sampling
from ray_apps.serving.engine_pool import Engines, unavailable
from ray_apps.serving.following import RolloutFollower
from ray_apps.serving.metrics import CONTENT_TYPE, Metrics, Snapshot
from ray_apps.serving.pulse import Pulse
from ray_apps.serving.record import EventSink, Recorder
from schemas.errors import ApiError
from schemas.openai import ChatRequest, CompletionRequest, ModelCard, ModelList, error_body, parse_request
from schemas.settings import ServingSettings

_log = logging.getLogger(__name__)
SESSION_HEADER = "x-headrace-session"
CLIENT_CLOSED = 499
"""Nobody reads this answer: its client has gone."""
TELL_INTERVAL_S = 2.0
"""Between two reports of a gateway's numbers to where those of several are added up."""
ADD_UP_TIMEOUT_S = 5.0

AddUp = Callable[[Snapshot], Awaitable[bytes]]
"""Takes a gateway's numbers; returns the text that tells those of all gateways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which of several gateways this is."""

    rank: int = 0
    """From 0; no other one that runs has it."""
    most: int = 1
    """How many there may be."""

    @property
    def max_shadows(self) -> int:
        """This gateway's part of MAX_SHADOWS."""
        return max(1, MAX_SHADOWS // self.most)


class Gateway:
    """Handlers and their state."""

    def __init__(
        self,
        settings: ServingSettings,
        dispatcher: Dispatcher,
        metrics: Metrics,
        *,
        poll_interval_s: float,
        place: Place,
        add_up: AddUp | None,
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._poll_interval_s = poll_interval_s
        self._add_up = add_up
        self._series = f"{settings.seed}" if place.rank == 0 else f"{settings.seed}:{place.rank}"
        self._unseeded = 0

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Follow the rollout, and tell the numbers, while the application runs."""
        tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._tell())]
        try:
            yield
        finally:
            await _ended(*tasks)
            await self._dispatcher.close()
            await self._tell_once()

    async def _tell(self) -> None:
        while self._add_up is not None:
            await self._tell_once()
            await asyncio.sleep(TELL_INTERVAL_S)

    async def _tell_once(self) -> None:
        if self._add_up is None:
            return
        try:
            async with asyncio.timeout(ADD_UP_TIMEOUT_S):
                await self._add_up(self._metrics.snapshot())
        except Exception as error:  # noqa: BLE001  the next report has the same numbers and more
            _log.info("the numbers of this gateway were not added to those of the others: %s", error)

    async def metrics(self) -> Response:
        """GET /metrics: of all gateways. Raises ApiError 503 if they cannot be added up: numbers of one alone would look like a reset."""
        if self._add_up is None:
            return Response(self._metrics.render(), media_type=CONTENT_TYPE)
        try:
            async with asyncio.timeout(ADD_UP_TIMEOUT_S):
                return Response(await self._add_up(self._metrics.snapshot()), media_type=CONTENT_TYPE)
        except Exception as error:
            raise unavailable(f"the numbers of the gateways cannot be added up ({type(error).__name__}); try again", "metrics_unavailable") from error

    async def _follow(self) -> None:
        while True:
            try:
                await self._dispatcher.refresh()
            except Exception:  # noqa: BLE001  whatever it was, the next poll may succeed, and without polls the service would stand still
                _log.exception("the rollout could not be followed; trying again")
            await asyncio.sleep(self._poll_interval_s)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        arrived_s = time.perf_counter()
        parsed = parse_request(CompletionRequest, await read_body(request))
        work = GenerationRequest(
            id=_work_id(request),
            prompts=parsed.prompts,
            num_choices=parsed.n or 1,
            sampling=self._sampling(parsed, parsed.token_limit),
        )
        return await self._answer(request, parsed, work, arrived_s)

    async def chat_completions(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        arrived_s = time.perf_counter()
        parsed = parse_request(ChatRequest, await read_body(request))
        work = GenerationRequest(
            id=_work_id(request),
            messages=tuple(Message(message.role, message.text) for message in parsed.messages),
            num_choices=parsed.n or 1,
            sampling=self._sampling(parsed, parsed.token_limit),
        )
        return await self._answer(request, parsed, work, arrived_s)

    def _sampling(self, parsed: CompletionRequest | ChatRequest, max_tokens: int | None) -> Sampling:
        limit = self._settings.max_completion_tokens
        if max_tokens is not None and max_tokens > limit:
            param = "max_tokens" if parsed.max_tokens else "max_completion_tokens"
            message = f"{param} is too large: {max_tokens}. This server gives at most {limit} completion tokens."
            raise ApiError(400, message, type="invalid_request_error", code="invalid_value", param=param)
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if parsed.temperature is None else parsed.temperature,
            top_p=1.0 if parsed.top_p is None else parsed.top_p,
            top_k=parsed.top_k or 0,
            presence_penalty=parsed.presence_penalty or 0.0,
            frequency_penalty=parsed.frequency_penalty or 0.0,
            stop=parsed.stops,
            seed=parsed.seed if parsed.seed is not None else self._next_seed(),
        )

    def _next_seed(self) -> int:
        """A seed for a request that brings none: another one each time, and the same series after each start if ``serving.seed`` asks for that."""
        if self._settings.seed == 0:
            return secrets.randbits(64)
        self._unseeded += 1
        return xxhash.xxh3_64_intdigest(f"{self._series}:{self._unseeded}".encode())

    async def _answer(self, request: Request, parsed: CompletionRequest | ChatRequest, work: GenerationRequest, arrived_s: float) -> Response:
        sticky_key = parsed.user or request.headers.get(SESSION_HEADER) or work.id
        job = Job(
            request=work,
            request_id=request.scope["state"]["request_id"],
            model=parsed.model,
            sticky_key=sticky_key,
            arrived_s=arrived_s,
            traceparent=current_traceparent(),
        )
        answer = await unless_gone(request, self._dispatcher.answer(job, whole=not parsed.stream))
        if answer is None:
            return Response(status_code=CLIENT_CLOSED)
        is_chat = isinstance(parsed, ChatRequest)
        form = Form(
            kind="chat" if is_chat else "completion",
            id=f"{'chatcmpl' if is_chat else 'cmpl'}-{work.id}",
            model=f"{MODEL}-v{answer.version}",
            num_sequences=max(len(work.prompts), 1) * work.num_choices,
            num_choices=work.num_choices,
            include_usage=parsed.include_usage,
        )
        headers = {"x-headrace-model-version": str(answer.version), "x-headrace-variant": answer.role}
        if parsed.stream:
            headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return _EventStream(form, answer, headers)
        return await _whole(form, answer, headers)

    async def models(self) -> ModelList:
        """GET /v1/models: the routed model, then every version that answers."""
        return ModelList(data=self._cards())

    async def model(self, model: str) -> ModelCard:
        """GET /v1/models/{model}."""
        for card in self._cards():
            if card.id == model:
                return card
        message = f"The model '{model}' does not exist or is not served at present."
        raise ApiError(404, message, type="invalid_request_error", code="model_not_found", param="model")

    def _cards(self) -> list[ModelCard]:
        state = self._dispatcher.follower.active
        ready = self._dispatcher.engines.ready
        routed = [MODEL] if state is not None and state.champion in ready else []
        created = 0 if state is None else int(state.created_at.timestamp())  # the same in every gateway
        return [ModelCard(id=name, created=created) for name in (*routed, *(f"{MODEL}-v{version}" for version in sorted(ready)))]

    async def health(self) -> JSONResponse:
        """GET /health: 200 when the champion answers now, else 503 with what is missing. Added: what keeps a challenger from
        answering, and ``down``, the services that `up` no longer starts.
        """
        state = self._dispatcher.follower.active
        missing, lame = await asyncio.gather(self._missing(state.champion if state else None), self._lame(state.challenger if state else None))
        body: dict[str, Any] = {
            "status": "unavailable" if missing else "ok",
            "champion": state.champion if state else None,
            "ready_versions": sorted(self._dispatcher.engines.ready),
            "challenger": state.challenger if state else None,
            "rollout_number": state.number if state else None,
        }
        if lame is not None:
            body["challenger_missing"] = lame
        if down := await asyncio.to_thread(self._down):
            body["down"] = down
        if missing is None:
            return JSONResponse(body)
        error = unavailable(f"no model can answer: {missing}", code="unavailable")
        headers = {"retry-after": error_response(error).headers["retry-after"]}
        return JSONResponse(body | {"missing": missing} | error_body(error).model_dump(), status_code=503, headers=headers)

    def _down(self) -> list[str]:
        """Services that the running `up` no longer starts."""
        note = read_up_note(self._dispatcher.follower.root)
        return list(note.down) if note else []

    async def _missing(self, champion: int | None) -> str | None:
        """What keeps requests from being answered."""
        if champion is None:
            return "there is no champion: no model has been registered, or none was put into service"
        return await self._silent("champion", champion)

    async def _lame(self, challenger: int | None) -> str | None:
        """What keeps the challenger from answering. Meanwhile the champion answers its requests."""
        return None if challenger is None else await self._silent("challenger", challenger)

    async def _silent(self, role: str, version: int) -> str | None:
        if version not in self._dispatcher.engines.ready:
            return f"the engine of {role} {version} {self._dispatcher.engines.why_not(version)}"
        health = await self._dispatcher.engines.health(version)
        return None if health.ok else f"the engine of {role} {version} is not healthy: {health.reason}"


def _work_id(request: Request) -> str:
    """The id of the answer is that of the request: who has one of them has both."""
    request_id: str = request.scope["state"]["request_id"]
    return request_id.removeprefix("req_")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer | None:
    """The answer that ``work`` begins. If the client disconnects first, ``work`` is cancelled; then None.

    Whoever cancels this gets no answer. One that has begun in the same moment is closed, so that nothing is generated for nobody, and it is recorded.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        await _ended(gone) if task.done() else await _ended(task, gone)
    except asyncio.CancelledError:
        await _ended(task, gone)
        if not task.cancelled() and task.exception() is None:
            await task.result().aclose()
        raise
    return None if task.cancelled() else task.result()


async def _ended(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel them, and wait for their ends."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(form: Form, answer: Answer, headers: dict[str, str]) -> Response:
    tally = AnswerSoFar(form)
    async with aclosing(answer):
        async for chunks in answer.chunks():
            for chunk in chunks:
                tally.add(chunk)
    return Response(whole(form, tally).model_dump_json(), media_type="application/json", headers=headers)


class _EventStream(StreamingResponse):
    """Sends an answer as it comes, and closes it even where the client goes away while a chunk is being sent."""

    def __init__(self, form: Form, answer: Answer, headers: dict[str, str]) -> None:
        super().__init__(events(form, answer.chunks()), media_type="text/event-stream", headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._answer):
            await super().__call__(scope, receive, send)


def build_gateway(
    settings: ServingSettings,
    engines: Engines,
    follower: RolloutFollower,
    *,
    sink: EventSink | None,
    poll_interval_s: float,
    behind_edge: bool = False,
    place: Place | None = None,
    add_up: AddUp | None = None,
) -> App:
    """The ASGI application. ``sink`` takes inference.completed events; None: there is no Kafka to tell.

    ``behind_edge``: an ``Edge`` stands before us already, in Ray Serve's proxy. ``place`` and ``add_up`` are for one of several gateways.
    """
    place = place or Place()
    metrics = Metrics()
    recorder = Recorder(metrics, sink, record_prompts=settings.record_prompts)
    dispatcher = Dispatcher(Pulse(engines), follower, recorder, request_timeout_s=settings.request_timeout_s, max_shadows=place.max_shadows)
    gateway = Gateway(settings, dispatcher, metrics, poll_interval_s=poll_interval_s, place=place, add_up=add_up)
    app = FastAPI(title="Headrace", openapi_url=None, lifespan=gateway.lifespan)
    install_error_bodies(app)
    app.post("/v1/completions")(gateway.completions)
    app.post("/v1/chat/completions")(gateway.chat_completions)
    routes = (("/v1/models", gateway.models), ("/v1/models/{model}", gateway.model), ("/health", gateway.health), ("/metrics", gateway.metrics))
    for path, handler in routes:
        app.api_route(path, methods=["GET", "HEAD"])(handler)
    surroundings = Surroundings(app, api_keys=settings.api_keys, metrics=metrics)
    return surroundings if behind_edge else Edge(surroundings)
