"""What one engine did for one request, and where that is told: an ``inference.completed`` event, the metrics and a span.

Invariant: every answer that an engine began, primary or shadow, is told exactly once, whatever ends it. Telling costs microseconds and
waits for nobody: the event goes to a bounded queue, and is dropped and counted when a broker does not keep up.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol, cast

from pipelines.runtime.tracing import Attributes, record_span
from ray_apps.serving.engine.interface import Chunk, FinishReason, GenerationRequest
from ray_apps.serving.metrics import Metrics
from schemas.errors import ApiError
from schemas.events import Event, InferenceCompleted, new_event

_log = logging.getLogger(__name__)
SOURCE = "/headrace/gateway"

Role = Literal["champion", "challenger"]


class EventSink(Protocol):
    """Takes events without waiting; pipelines.kafka.events.EventProducer is one."""

    def publish(self, event: Event, *, topic: Literal["events", "inference"], key: str | None) -> None:
        """Queue the event."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Who answers a request, as what, since when."""

    request_id: str
    version: int
    role: Role
    shadow: bool
    pinned: bool
    """The client named the version."""
    rollout_number: int
    arrived_s: float
    """``time.perf_counter`` when the request came in."""
    traceparent: str | None
    """W3C trace context of the request."""


@dataclass(slots=True)
class Outcome:
    """What came of it so far."""

    prompt_tokens: dict[int, int] = field(default_factory=dict)
    completion_tokens: int = 0
    first_token_s: float | None = None
    finish_reason: FinishReason | None = None
    text: dict[int, str] = field(default_factory=dict)
    error: ApiError | None = None

    def add(self, chunk: Chunk, now_s: float) -> None:
        """Count a chunk."""
        self.prompt_tokens[chunk.index] = chunk.prompt_tokens
        self.completion_tokens += len(chunk.token_ids)
        if chunk.token_ids and self.first_token_s is None:
            self.first_token_s = now_s
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.text[chunk.index] = self.text.get(chunk.index, "") + chunk.text

    def num_prompt_tokens(self, num_choices: int) -> int:
        """Tokens of all prompts; the choices of one prompt share it."""
        return sum(count for index, count in self.prompt_tokens.items() if index % num_choices == 0)


class Recorder:
    """Tells outcomes to Kafka and to the metrics."""

    def __init__(self, metrics: Metrics, sink: EventSink | None, *, record_prompts: bool) -> None:
        self.metrics = metrics
        self._sink = sink
        self._record_prompts = record_prompts

    async def observe(
        self, answer: AsyncIterator[tuple[Chunk, ...]], request: GenerationRequest, assignment: Assignment
    ) -> AsyncGenerator[tuple[Chunk, ...], None]:
        """The chunks as they come, counted; told when they end, fail or are abandoned. Raises what ``answer`` raises."""
        outcome = Outcome()
        self.metrics.begin(assignment.version, assignment.role, shadow=assignment.shadow)
        try:
            async with aclosing(cast("AsyncGenerator[tuple[Chunk, ...], None]", answer)) as stream:
                async for chunks in stream:
                    for chunk in chunks:
                        outcome.add(chunk, time.perf_counter())
                    yield chunks
        except ApiError as error:
            outcome.error = error
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome.finish_reason = FinishReason.CANCELLED
            raise
        except Exception as error:
            outcome.error = ApiError(500, str(error), type="server_error", code="internal_error")
            raise
        finally:
            self.metrics.end(assignment.version, assignment.role, shadow=assignment.shadow)
            self._tell(request, assignment, outcome)

    def _tell(self, request: GenerationRequest, assignment: Assignment, outcome: Outcome) -> None:
        if outcome.error is not None and outcome.error.status < 500:
            return  # the request was refused: that says nothing about the model
        latency_s = time.perf_counter() - assignment.arrived_s
        self.metrics.observe(assignment.version, assignment.role, shadow=assignment.shadow, outcome=_status(outcome), latency_s=latency_s)
        self.metrics.count_tokens(assignment.version, outcome.num_prompt_tokens(request.num_choices), outcome.completion_tokens)
        completed = self._completed(request, assignment, outcome, latency_s)
        traceparent = record_span("answer", _attributes(completed), parent=assignment.traceparent, duration_s=latency_s, error=completed.error_code)
        if self._sink is None:
            return
        event = new_event(
            completed,
            id=f"{request.id}/shadow" if assignment.shadow else f"{request.id}/{assignment.version}",
            source=SOURCE,
            time=datetime.now(UTC),
            subject=f"model/{assignment.version}",
            traceparent=traceparent,
        )
        try:
            self._sink.publish(event, topic="inference", key=assignment.request_id)
        except Exception:  # noqa: BLE001  an event that cannot be told must not take the answer with it
            _log.exception("an inference.completed event was not published")

    def _completed(self, request: GenerationRequest, assignment: Assignment, outcome: Outcome, latency_s: float) -> InferenceCompleted:
        first_s = None if outcome.first_token_s is None else outcome.first_token_s - assignment.arrived_s
        told = {"prompt": _prompt_text(request), "completion": "\n".join(outcome.text.values())} if self._record_prompts else {}
        return InferenceCompleted(
            request_id=assignment.request_id,
            model_version=assignment.version,
            role=assignment.role,
            shadow=assignment.shadow,
            pinned=assignment.pinned,
            rollout_number=assignment.rollout_number,
            status="error" if outcome.error else "ok",
            error_code=(outcome.error.code or str(outcome.error.status)) if outcome.error else None,
            prompt_tokens=outcome.num_prompt_tokens(request.num_choices),
            completion_tokens=outcome.completion_tokens,
            latency_s=latency_s,
            time_to_first_token_s=first_s,
            finish_reason=outcome.finish_reason,
            **told,
        )


def _attributes(completed: InferenceCompleted) -> Attributes:
    """What a span says: OpenTelemetry's names for generated text where there are some. Never a prompt."""
    return {
        "gen_ai.response.finish_reasons": [completed.finish_reason or "error"],
        "gen_ai.usage.input_tokens": completed.prompt_tokens,
        "gen_ai.usage.output_tokens": completed.completion_tokens,
        "headrace.model_version": completed.model_version,
        "headrace.role": completed.role,
        "headrace.shadow": completed.shadow,
        "headrace.pinned": completed.pinned,
        "headrace.rollout_number": completed.rollout_number,
        "headrace.status": completed.status,
    }


def _status(outcome: Outcome) -> str:
    if outcome.error is not None:
        return "error"
    return "cancelled" if outcome.finish_reason is FinishReason.CANCELLED else "ok"


def _prompt_text(request: GenerationRequest) -> str:
    texts = [prompt if isinstance(prompt, str) else " ".join(map(str, prompt)) for prompt in request.prompts]
    texts += [f"{message.role}: {message.content}" for message in request.messages]
    return "\n".join(texts)
